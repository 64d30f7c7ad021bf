//! Every kind of call that the store makes, failing once, for a while, and for ever.

use crate::case::{Case, End, LONG_LOG_BYTES, Lasting, Outcome, run, template};
use crate::shim::{Caller, Errno, Kind, Rule, Syscall};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Servers at the same time: a case mostly waits.
const TOGETHER: usize = 4;

/// Who makes which call of which file. What the fold's thread writes and syncs in the database file is a checkpoint.
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
            let case = |first, lasting| Case::new(rule(first), lasting);
            match depth() {
                Some(depth) => {
                    // These happen once or twice after a start.
                    let is_rare = syscall == Syscall::Open || (kind, syscall) == (Kind::Log, Syscall::Truncate);
                    let depth = if is_rare { 1 } else { depth };
                    cases
                        .extend((1..=depth).flat_map(|first| [Lasting::Once, Lasting::AWhile].map(|l| case(first, l))));
                    cases.push(case(1, Lasting::Forever));
                }
                None if syscall == Syscall::Open || syscall == Syscall::Truncate => {}
                None => cases.extend([case(2, Lasting::Once)]),
            }
        }
    }
    let lasting = |kind, caller, syscall, errno, lasting| {
        Case::new(Rule { kind, syscall, caller, errno, first: 1, calls: 1, only_growth: false }, lasting)
    };
    cases.extend([
        lasting(Kind::Log, Caller::Any, Syscall::Write, Errno::Enospc, Lasting::AWhile),
        lasting(Kind::Database, Caller::Fold, Syscall::Write, Errno::Enospc, Lasting::AWhile),
        lasting(Kind::Database, Caller::Any, Syscall::Read, Errno::Eio, Lasting::Forever),
        lasting(Kind::Any, Caller::Any, Syscall::Read, Errno::Eio, Lasting::AWhile),
    ]);
    let index = lasting(Kind::Index, Caller::Any, Syscall::Write, Errno::Enospc, Lasting::Once);
    cases.push(Case { log_bytes: LONG_LOG_BYTES, ..index });
    cases
}

/// What each kind of fault has to lead to, where that is certain.
fn check(case: &Case, outcome: &Outcome) {
    let Rule { kind, syscall, caller, first, .. } = case.rule;
    let may_end = match syscall {
        // A service that cannot read for long ends; one that could not once goes on.
        Syscall::Read | Syscall::Open => case.lasting == Lasting::Forever,
        // Without room for the log's index nobody knows whether a commit that is in the log is one.
        Syscall::Write => !case.is_full() || kind == Kind::Index,
        Syscall::Sync | Syscall::Truncate => true,
    };
    assert!(may_end || outcome.end != End::Ended, "{case:?} ended the service: {}", outcome.log);
    // A failed sync is never tried again.
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
async fn whatever_call_fails_the_service_recovers_or_ends_and_nothing_acknowledged_is_lost() {
    template().await;
    let places = Arc::new(Semaphore::new(TOGETHER));
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
        "{} cases: {} recovered, {} ended, {} not reached, {broken} broken; {} acknowledged, {} of them applied by a try \
         that failed, {} refused as full",
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
