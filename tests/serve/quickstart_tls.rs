//! The commands of docs/quickstart-tls.md run as they are printed there, and print what the page shows.
//!
//! Each `sh` block is run in order, and the `text` block that follows it is the expected output. In expected output,
//! `...` alone on a line stands for any number of lines, and within a line for any text.

use crate::process::{Server, slotcast, text};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const PAGE: &str = include_str!("../../docs/quickstart-tls.md");
const SERVE: &str = "slotcast serve ";
const END: &str = "--- end of block, status ";

/// Commands of the page and their expected output.
struct Example {
    commands: &'static str,
    output: &'static str,
}

fn examples() -> Vec<Example> {
    let mut blocks = PAGE.split("\n```").skip(1).step_by(2);
    let mut examples = Vec::new();
    while let Some(commands) = blocks.next() {
        let commands = commands.strip_prefix("sh\n").expect("commands come before their output");
        let output = blocks.next().and_then(|block| block.strip_prefix("text\n")).expect("each command has output");
        examples.push(Example { commands, output });
    }
    examples
}

/// Returns whether the lines match the pattern from their first to their last.
fn matches(pattern: &[&str], lines: &[&str]) -> bool {
    match (pattern.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((&"...", rest)), _) => (0..=lines.len()).any(|skipped| matches(rest, &lines[skipped..])),
        (Some((expected, pattern)), Some((line, lines))) => line_matches(expected, line) && matches(pattern, lines),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let Some((start, rest)) = pattern.split_once("...") else { return pattern == line };
    let Some(line) = line.strip_prefix(start) else { return false };
    (0..=line.len()).filter(|at| line.is_char_boundary(*at)).any(|at| line_matches(rest, &line[at..]))
}

/// A shell that keeps its variables between blocks, as a terminal does.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        writeln!(stdin, "exec 2>&1").unwrap();
        Self { child, stdin, stdout }
    }

    /// Runs commands, and returns their output and the status of the last one.
    fn run(&mut self, commands: &str) -> (String, i32) {
        // Commands read standard input unless they are started in a terminal.
        writeln!(self.stdin, "{{\n{commands}\n}} </dev/null\nstatus=$?; echo; echo \"{END}$status\"").unwrap();
        let mut output = String::new();
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the shell has exited:\n{output}");
            if let Some(status) = line.strip_prefix(END) {
                return (output.trim_end().to_owned(), status.trim().parse().unwrap());
            }
            output.push_str(&line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a free address. The ports are below the range from which the system takes ports of outgoing connections.
fn free_address(ports: Range<u16>) -> String {
    let port = (0..100)
        .map(|_| fastrand::u16(ports.clone()))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port");
    format!("127.0.0.1:{port}")
}

/// Prepares a terminal of the page: `slotcast` on PATH, and free ports in place of the defaults.
fn terminal(folder: &Path, listen: &str, admin_listen: &str) -> Command {
    let mut command = slotcast(&[]);
    let program = Path::new(command.get_program()).parent().unwrap().to_owned();
    let variables: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    command = Command::new("sh");
    for name in variables {
        command.env_remove(name);
    }
    let path = std::env::var("PATH").unwrap();
    command
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", program.display()))
        .env("SLOTCAST_LISTEN", listen)
        .env("SLOTCAST_ADMIN_LISTEN", admin_listen)
        // The system's root certificates, which a minimal image does not have.
        .env("SSL_CERT_FILE", folder.join("system/ca.pem"));
    command
}

#[test]
fn the_commands_of_the_page_print_what_the_page_shows() {
    let folder = tempfile::tempdir().unwrap();
    let system = folder.path().join("system");
    let created = slotcast(&["dev-credentials", system.to_str().unwrap()]).output().unwrap();
    assert!(created.status.success(), "{}", text(&created.stderr));
    let (listen, admin_listen) = (free_address(20_000..25_000), free_address(25_000..30_000));
    let mut shell = Shell::start(terminal(folder.path(), &listen, &admin_listen));
    let mut server = None;
    let examples = examples();
    assert!(examples.len() >= 8, "only {} examples were found", examples.len());
    for Example { commands, output } in examples {
        let expected = output.replace("127.0.0.1:7400", &listen).replace("127.0.0.1:7401", &admin_listen);
        let pattern: Vec<&str> = expected.lines().collect();
        let (output, status) = if commands.starts_with(SERVE) {
            let mut first_terminal = terminal(folder.path(), &listen, &admin_listen);
            first_terminal.args(["-c", &format!("exec {commands}")]);
            let started = server.insert(Server::run(first_terminal, folder.path()));
            (pattern.iter().map(|_| started.line()).collect(), 0)
        } else {
            shell.run(commands)
        };
        assert!(
            matches(&pattern, &output.lines().collect::<Vec<_>>()),
            "{commands}\nprinted:\n{output}\n\nnot:\n{expected}"
        );
        let fails = expected.starts_with("slotcast: ");
        assert_eq!(status != 0, fails, "{commands}\nexited with status {status}");
    }
    assert!(server.is_some(), "the page starts a server");
}

#[test]
fn the_comparison_of_outputs_finds_differences() {
    let lines = ["{", "  \"epoch\": 7,", "  \"revision\": \"1\"", "}"];
    assert!(matches(&["{", "  \"epoch\": ...,", "...", "}"], &lines));
    assert!(matches(&["...", "}"], &lines) && matches(&["{", "..."], &lines));
    for pattern in
        [&["{", "  \"epoch\": 8,", "...", "}"][..], &["{", "}"], &["...", "{"], &["...\"epoch\": ...;", "..."]]
    {
        assert!(!matches(pattern, &lines), "{pattern:?}");
    }
}
