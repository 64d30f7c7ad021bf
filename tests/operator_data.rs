//! The operator's commands on data, as processes: backup, restore, export, import, fsck.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn slotcast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    command.args(arguments);
    command
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_command_quietly() {
    for arguments in [&["serve", "--print-config"][..], &["call", "--list"]] {
        // Nobody reads from the beginning on: the first write fails, however small it is.
        let mut child = slotcast(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let said: Vec<String> = stderr.lines().map(|line| line.unwrap()).collect();
        assert!(child.wait().unwrap().success(), "{arguments:?}: {said:?}");
        assert!(said.is_empty(), "{arguments:?}: {said:?}");
    }
}
