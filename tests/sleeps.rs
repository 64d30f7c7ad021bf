//! A test sleeps for at most 100 ms, unless time is what it tests: then a comment says so.
//!
//! Tests in virtual time are exempt. The check reads the source text of the tests in all languages.

use std::path::{Path, PathBuf};

const SLEEP_MS_MAX: f64 = 100.0;
/// The marker and a reason stand in a comment directly above the sleep.
const MARKER: &str = "Time under test: ";

#[test]
fn sleeps_above_100_ms_are_marked_with_a_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut sleeps = 0;
    for path in ["tests", "src", "benches", "examples", "deploy"].iter().flat_map(|folder| files(&root.join(folder))) {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let is_source = path.starts_with(root.join("src"));
        let tests = if is_source { text.split_once("#[cfg(test)]").map_or("", |(_, tests)| tests) } else { &*text };
        if path.ends_with("tests/sleeps.rs") {
            continue;
        }
        sleeps += tests.lines().filter(|line| sleep_argument(line).is_some()).count();
        found.extend(violations(tests).into_iter().map(|line| format!("{}: {line}", path.display())));
    }
    assert!(sleeps > 20, "only {sleeps} sleeps found");
    assert!(found.is_empty(), "add a comment `{MARKER}<reason>`, or wait for an event:\n  {}\n", found.join("\n  "));
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}

/// Returns the sleeps that are longer than the maximum, or of unknown length, and not marked.
fn violations(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut is_time_paused = false;
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        if line.starts_with("#[") && line.contains("test") {
            is_time_paused = line.contains("start_paused = true");
        }
        let Some(argument) = sleep_argument(line) else { continue };
        let is_short = longest_ms(argument, &lines).is_some_and(|ms| ms <= SLEEP_MS_MAX);
        let is_marked = lines[..number]
            .iter()
            .rev()
            .take_while(|line| line.starts_with("//") || line.starts_with('#'))
            .any(|line| line.contains(MARKER));
        if !is_short && !is_marked && !is_time_paused {
            found.push((*line).to_owned());
        }
    }
    found
}

/// Returns the argument of a call of `sleep` in Rust or Python, or of the shell command.
fn sleep_argument(line: &str) -> Option<&str> {
    if line.starts_with("//") || line.starts_with('#') {
        return None;
    }
    if let Some(argument) = line.strip_prefix("sleep ") {
        return Some(argument);
    }
    let (before, after) = line.split_once("sleep(").or_else(|| line.split_once("sleep_until("))?;
    let is_call = before.is_empty() || before.ends_with([' ', ':', '.', '(']);
    if !is_call || before.ends_with("fn ") {
        return None;
    }
    let mut open = 1;
    let end = after.find(|character| {
        open += i32::from(character == '(') - i32::from(character == ')');
        open == 0
    });
    Some(&after[..end.unwrap_or(after.len())])
}

/// Returns the longest duration of an argument: seconds, a `Duration`, or a constant of the file, multiplied or divided.
fn longest_ms(argument: &str, lines: &[&str]) -> Option<f64> {
    if let Ok(seconds) = argument.parse::<f64>() {
        return Some(seconds * 1_000.0);
    }
    for (unit, ms) in [("from_secs(", 1_000.0), ("from_millis(", 1.0), ("from_micros(", 0.001)] {
        if let Some(number) = argument.strip_prefix("Duration::").and_then(|argument| argument.strip_prefix(unit)) {
            return Some(largest(number.strip_suffix(')')?)? * ms);
        }
    }
    if let Some((factor, constant)) = argument.split_once(" * ") {
        return Some(factor.parse::<f64>().ok()? * longest_ms(constant, lines)?);
    }
    if let Some((constant, divisor)) = argument.split_once(" / ") {
        return Some(longest_ms(constant, lines)? / divisor.parse::<f64>().ok()?);
    }
    let declaration = format!("const {argument}: Duration = ");
    let value = lines.iter().find_map(|line| line.split_once(&declaration))?.1;
    longest_ms(value.strip_suffix(';')?, &[])
}

/// Returns a number, or the upper bound of a random one such as `fastrand::u64(0..30)`.
fn largest(number: &str) -> Option<f64> {
    let range = number.strip_prefix("fastrand::u64(").and_then(|range| range.strip_suffix(')'));
    let number = range.map_or(Some(number), |range| range.split_once("..").map(|(_, end)| end))?;
    number.replace('_', "").parse().ok()
}

#[test]
fn unmarked_long_sleeps_are_found() {
    for (text, is_violation) in [
        ("std::thread::sleep(Duration::from_millis(101));", true),
        ("tokio::time::sleep(Duration::from_secs(1)).await;", true),
        ("sleep(Duration::from_millis(fastrand::u64(20..250))).await;", true),
        ("const PAUSE: Duration = Duration::from_millis(60);\nsleep(2 * PAUSE).await;", true),
        ("sleep(wait).await;", true),
        ("sleep_until(begin + wait).await;", true),
        ("time.sleep(0.3)", true),
        ("time.sleep(size(0.1, 2))", true),
        ("  sleep 1", true),
        ("// Time under test: too early.\nlet now = Instant::now();\nsleep(Duration::from_secs(1)).await;", true),
        ("#[tokio::test(start_paused = true)]\n#[test]\nsleep(Duration::from_secs(1)).await;", true),
        ("std::thread::sleep(Duration::from_millis(100));", false),
        ("sleep(Duration::from_micros(fastrand::u64(0..60_000))).await;", false),
        ("const PAUSE: Duration = Duration::from_millis(300);\nsleep(PAUSE / 10).await;", false),
        ("#[tokio::test(start_paused = true)]\nsleep(Duration::from_secs(1)).await;", false),
        ("// Time under test: a reason.\n// More of it.\nsleep(Duration::from_secs(1)).await;", false),
        ("# Time under test: a reason.\ntime.sleep(1)", false),
        ("time.sleep(0.1)", false),
        ("  sleep 0.1", false),
        ("// sleep(Duration::from_secs(1))", false),
    ] {
        assert_eq!(!violations(text).is_empty(), is_violation, "{text}");
    }
}
