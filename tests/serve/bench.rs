//! `slotcast bench` as a command: all of its measurements, as small as possible.

use crate::process::{slotcast, text};
use serde_json::Value;
use tempfile::TempDir;

/// Arguments with which all suites take a few seconds.
const TINY: [&str; 13] = [
    "--seconds=0.2",
    "--runs=1",
    "--inventories=20",
    "--loads=2x8",
    "--rates=200",
    "--streams=20",
    "--mutations=100",
    "--players=10",
    "--stored=50",
    "--reads=100",
    "--unpinned",
    "--json",
    "-",
];

#[test]
fn every_measurement_completes_without_a_failed_call() {
    let folder = TempDir::new().unwrap();
    let plots = folder.path().join("plots");
    let output = slotcast(&["bench", "all", "--plots"]).arg(&plots).args(TINY).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = |suite: &str| report[suite].as_array().unwrap().clone();
    let unary = figures("unary");
    assert_eq!(unary.len(), 10, "five calls in a closed and in an open loop");
    assert!(unary.iter().all(|figure| figure["errors"] == 0), "{unary:?}");
    // On a busy machine, no reply may arrive within one short measurement.
    assert!(unary.iter().any(|figure| figure["calls_per_s"].as_f64().unwrap() > 0.0), "{unary:?}");
    assert_eq!(report["streams"]["idle"][0]["streams"], 20);
    assert_eq!(report["streams"]["frames"][0]["mutations_per_s"], 100);
    assert_eq!(figures("sync").len(), 2);
    let mixed = figures("mixed");
    assert_eq!(mixed.len(), 3, "two open loops and a closed one");
    assert!(mixed.iter().all(|figure| figure["reads"][0]["errors"] == 0), "missing ids are not found: {mixed:?}");
    let stored: Vec<_> = figures("scale").iter().map(|figure| figure["stored"].as_u64()).collect();
    assert_eq!(stored, [Some(20), Some(50)]);
    assert_eq!(figures("all_cores").len(), 2);
    assert_eq!(report["bytes"]["traces"].as_array().unwrap().len(), 6);
    let bytes = std::fs::read_to_string(plots.join("bytes.svg")).unwrap();
    assert!(bytes.contains("chest-craft-") && bytes.contains("<rect class=\"area c2\""), "{bytes}");
    for plot in ["throughput.svg", "latency.svg"] {
        assert!(std::fs::read_to_string(plots.join(plot)).unwrap().contains("<polyline"), "{plot}");
    }
}

#[test]
fn a_failed_call_fails_the_command() {
    // The rate limit of the server admits one call a second, so nearly every call fails.
    let arguments = ["bench", "unary", "--calls=get", "--loads=1x1", "--rates=0", "--seconds=0.1", "--runs=1"];
    let limits = ["--inventories=2", "--unpinned", "--", "--limits-requests-per-second=1", "--limits-requests-burst=1"];
    let output = slotcast(&arguments).args(limits).output().unwrap();
    assert!(!output.status.success());
    let errors = text(&output.stderr);
    assert!(errors.contains("calls failed; the first: GetInventory: status 8"), "{errors}");
}

#[test]
fn errors_tell_what_to_do() {
    let refused = |arguments: &[&str]| {
        let output = slotcast(&["bench"]).args(arguments).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let directory = refused(&["--directory=/nonexistent/directory"]);
    assert!(directory.contains("choose another with --directory"), "{directory}");
    let loads = refused(&["--loads=4"]);
    assert!(loads.contains("must be CONNECTIONSxCALLS"), "{loads}");
    let executable = refused(&["--executable=/nonexistent/slotcast"]);
    assert!(executable.contains("cannot run /nonexistent/slotcast"), "{executable}");
}
