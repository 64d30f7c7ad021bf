//! Lets every kind of call that the store makes fail once, temporarily, and permanently.

use crate::case::{Case, End, FaultDuration, LONG_LOG_BYTES, Outcome, run, template};
use crate::shim::{Caller, Errno, Kind, Rule, Syscall};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Number of servers that run at the same time. A case mostly waits.
const CONCURRENT_SERVERS: usize = 4;

/// Caller, file and system call. Writes and syncs of the database file by the fold's thread are checkpoints.
const CALLS: [(Caller, Kind, Syscall); 15] = [
    (Caller::Commit, Kind::Log, Syscall::Write),
    (Caller::Commit, Kind::Log, Syscall::Sync),
    (Caller::Commit, Kind::Log, Syscall::Read),
    (Caller::Commit, Kind::Database, Syscall::Read),
    (Caller::Any, Kind::Database, Syscall::Open),
    (Caller::Fold, Kind::Log, Syscall::Write),
    (Caller::Fold, Kind::Log, Syscall::Sync),
    (Caller::Fold, Kind::Log, Syscall::Read),
    (Caller::Fold, Kind::Log, Syscall::Truncate),
    (Caller::Fold, Kind::Database, Syscall::Read),
    (Caller::Fold, Kind::Database, Syscall::Write),
    (Caller::Fold, Kind::Database, Syscall::Sync),
    (Caller::Fold, Kind::Database, Syscall::Truncate),
    (Caller::Other, Kind::Database, Syscall::Read),
    (Caller::Other, Kind::Log, Syscall::Read),
];

fn depth() -> Option<i64> {
    std::env::var("SLOTCAST_IO_FAULTS").ok()?.parse().ok()
}

fn errnos(syscall: Syscall) -> &'static [Errno] {
    match syscall {
        Syscall::Read | Syscall::Open => &[Errno::Eio],
        Syscall::Write | Syscall::Sync | Syscall::Truncate => &[Errno::Eio, Errno::Enospc],
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (caller, kind, syscall) in CALLS {
        for errno in errnos(syscall) {
            let rule = |first| Rule { kind, syscall, caller, errno: *errno, first, calls: 1, only_growth: false };
            let case = |first, duration| Case::new(rule(first), duration);
            match depth() {
                Some(depth) => {
                    // These calls happen only once or twice after a start.
                    let is_rare = syscall == Syscall::Open || (kind, syscall) == (Kind::Log, Syscall::Truncate);
                    let depth = if is_rare { 1 } else { depth };
                    cases.extend(
                        (1..=depth)
                            .flat_map(|first| [FaultDuration::Once, FaultDuration::Temporary].map(|l| case(first, l))),
                    );
                    cases.push(case(1, FaultDuration::Permanent));
                }
                None if syscall == Syscall::Open || syscall == Syscall::Truncate => {}
                None => cases.extend([case(2, FaultDuration::Once)]),
            }
        }
    }
    let case = |kind, caller, syscall, errno, duration| {
        Case::new(Rule { kind, syscall, caller, errno, first: 1, calls: 1, only_growth: false }, duration)
    };
    cases.extend([
        case(Kind::Log, Caller::Any, Syscall::Write, Errno::Enospc, FaultDuration::Temporary),
        case(Kind::Database, Caller::Fold, Syscall::Write, Errno::Enospc, FaultDuration::Temporary),
        case(Kind::Database, Caller::Any, Syscall::Read, Errno::Eio, FaultDuration::Permanent),
        case(Kind::Any, Caller::Any, Syscall::Read, Errno::Eio, FaultDuration::Temporary),
    ]);
    let index = case(Kind::Index, Caller::Any, Syscall::Write, Errno::Enospc, FaultDuration::Once);
    cases.push(Case { log_bytes: LONG_LOG_BYTES, ..index });
    cases
}

/// Checks the outcome that each kind of fault must have, where it is certain.
fn check(case: &Case, outcome: &Outcome) {
    let Rule { kind, syscall, caller, first, .. } = case.rule;
    let may_end = match syscall {
        // A service exits if reads fail for long, and recovers from a single failure.
        Syscall::Read | Syscall::Open => case.duration == FaultDuration::Permanent,
        // Without room for the log's index, the outcome of a commit in the log is unknown.
        Syscall::Write => !case.is_full() || kind == Kind::Index,
        Syscall::Sync | Syscall::Truncate => true,
    };
    assert!(may_end || outcome.end != End::Ended, "{case:?} ended the service: {}", outcome.log);
    // A failed sync is never retried.
    if matches!(syscall, Syscall::Sync) && outcome.end != End::NotReached {
        assert_eq!(outcome.end, End::Ended, "{case:?}: {}", outcome.log);
    }
    let is_certain = !matches!(syscall, Syscall::Open | Syscall::Truncate) && kind != Kind::Index && first <= 2;
    let is_read_of_the_log = syscall == Syscall::Read && kind == Kind::Log && caller != Caller::Commit;
    assert!(
        outcome.end != End::NotReached || !is_certain || is_read_of_the_log,
        "{case:?} was not reached: {}",
        outcome.log
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_failed_call_the_service_recovers_or_exits_and_loses_nothing_acknowledged() {
    template().await;
    let places = Arc::new(Semaphore::new(CONCURRENT_SERVERS));
    let run_one = |(seed, case): (usize, Case)| {
        let places = places.clone();
        tokio::spawn(async move {
            let _place = places.acquire_owned().await.unwrap();
            let outcome = run(case, seed as u64).await;
            check(&case, &outcome);
            (case, outcome)
        })
    };
    let running: Vec<_> = cases().into_iter().enumerate().map(run_one).collect();
    let (mut outcomes, mut broken) = (Vec::new(), 0);
    for case in running {
        match case.await {
            Ok(outcome) => outcomes.push(outcome),
            Err(_) => broken += 1,
        }
    }
    let count = |end| outcomes.iter().filter(|(_, outcome)| outcome.end == end).count();
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(|(_, outcome)| of(outcome)).sum::<u64>();
    println!(
        "{} cases: {} recovered, {} ended, {} not reached, {broken} broken; {} acknowledged, {} of them applied by a failed \
         attempt, {} refused as full",
        outcomes.len() + broken,
        count(End::Recovered),
        count(End::Ended),
        count(End::NotReached),
        sum(|outcome| outcome.acknowledged),
        sum(|outcome| outcome.found_applied),
        sum(|outcome| outcome.refused_as_full),
    );
    for (case, outcome) in outcomes.iter().filter(|(_, outcome)| outcome.end == End::NotReached) {
        println!("not reached: {case:?} after {} mutations", outcome.acknowledged);
    }
    assert_eq!(broken, 0, "see above");
}
