//! Counts the instructions of the hot paths under callgrind, and compares them with a stored baseline.
//!
//! `benches/instructions.sh` builds and runs it with the flags that make the counts comparable:
//!
//! - `check` compares the counts with `benches/instructions/baseline.json` and fails if one has grown beyond the margin.
//! - `write` writes the baseline.
//! - `layers` prints the cost of each layer of a unary call as a Markdown table.
//! - `spread N` counts N times and prints how far the counts of each case lie apart.
//! - `run` executes the cases; the other commands call it under valgrind.

mod baseline;
mod calls;
mod cases;
mod connection;
mod counts;
mod fixtures;

use baseline::Baseline;
use counts::Counts;
use std::process::ExitCode;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: benches/instructions.sh check | write | layers | spread N";

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match *arguments.as_slice() {
        ["run"] => {
            run();
            Ok(())
        }
        [] | ["check"] => check(),
        ["write"] => Counts::measure().and_then(|counts| Baseline::of(&counts).write()),
        ["layers"] => Counts::measure().and_then(|counts| layers(&counts)),
        ["spread", times] => times.parse().map_err(|_| USAGE.to_owned()).and_then(spread),
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Executes all cases, each between two marks that callgrind recognizes.
fn run() {
    cases::run();
    calls::run();
}

fn check() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the baseline was counted on x86_64");
        return Ok(());
    }
    let baseline = Baseline::read()?;
    let counts = Counts::measure()?;
    print!("{}", baseline.table(&counts));
    baseline.compare(&counts)
}

/// Prints what each layer adds to a call, from the inside out: the difference between two cases.
fn layers(counts: &Counts) -> Result<(), String> {
    println!("| part of a GetInventory call | instructions |\n|---|---|");
    let (mut total, mut previous) = (0, 0);
    for (name, part) in calls::LAYERS {
        let count = counts.get(name).ok_or_else(|| format!("the case {name:?} was not counted"))?;
        println!("| {part} | {} |", count as i64 - previous as i64);
        (total, previous) = (count, count);
    }
    println!("| the whole call | {total} |");
    Ok(())
}

fn spread(times: usize) -> Result<(), String> {
    let runs = (0..times.max(2)).map(|_| Counts::measure()).collect::<Result<Vec<_>, _>>()?;
    println!("| case | least | most | spread |\n|---|---|---|---|");
    for (name, _) in &runs[0].by_case {
        let of_case: Vec<u64> = runs.iter().filter_map(|run| run.get(name)).collect();
        let (least, most) = (of_case.iter().min().unwrap_or(&0), of_case.iter().max().unwrap_or(&0));
        println!("| {name} | {least} | {most} | {:.2} % |", 100.0 * (most - least) as f64 / (*least).max(1) as f64);
    }
    Ok(())
}
