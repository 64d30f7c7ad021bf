//! Expiry of idempotency keys: no key runs twice, and no caller's clock affects another caller.

mod store_support;

use proptest::prelude::*;
use slotcast::store::embedded::tools::{self, Snapshot};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::{KeyStatus, ScopedKey, Store};
use std::collections::HashSet;
use std::time::Duration;
use store_support::*;

fn recall(store: &EmbeddedStore, key: &ScopedKey) -> KeyStatus {
    store.load(&[], std::slice::from_ref(key)).expect("it loads").key_statuses.remove(0)
}

fn commit(store: &EmbeddedStore, keys: &[ScopedKey]) {
    let batch: Vec<_> = keys.iter().map(|key| transaction(key.clone(), vec![])).collect();
    store.commit(&batch).expect("it commits");
}

#[test]
fn with_few_remembered_keys_a_caller_59_s_ahead_affects_no_other_caller_and_no_key_runs_twice() {
    const LATENCY_MS: u64 = 50;
    let place = Place::new();
    let settings = || EmbeddedSettings { keys_max: 1_000, ..place.clock.settings() };
    let mut store = place.open_with(settings());
    let mut sent = Vec::new();
    for number in 0..5_000 {
        place.clock.pass(Duration::from_millis(1));
        let now_ms = place.clock.right_unix_ms();
        let fast = uuid_key_of("fast", now_ms + 59_000, number);
        assert_eq!(recall(&store, &fast), KeyStatus::New);
        commit(&store, std::slice::from_ref(&fast));
        sent.push(fast);
        if number % 10 == 0 {
            // The call took a while to arrive.
            let other = uuid_key_of(&format!("other-{}", number % 50), now_ms - LATENCY_MS, number);
            assert_eq!(recall(&store, &other), KeyStatus::New, "after {number} keys of the fast caller");
            commit(&store, std::slice::from_ref(&other));
            sent.push(other);
        }
        if number % 100 == 99 {
            store.fold().expect("it folds");
        }
        if number % 1_000 == 999 {
            drop(store);
            store = place.open_with(settings());
        }
    }
    assert_eq!(store.statistics().remembered_keys, 1_000);
    assert_eq!(store.statistics().callers_ahead, 1);
    let check = |store: &EmbeddedStore| {
        let again = store.load(&[], &sent).expect("it loads").key_statuses;
        assert_eq!(again.iter().filter(|recall| **recall == KeyStatus::Expired).count(), sent.len() - 1_000);
        assert!(!again.contains(&KeyStatus::New));
        let fresh = uuid_key_of("newcomer", place.clock.right_unix_ms(), 1);
        assert_eq!(recall(store, &fresh), KeyStatus::New);
    };
    check(&store);
    drop(store);
    check(&place.open_with(settings()));
}

#[test]
fn with_a_short_key_window_a_caller_55_s_ahead_affects_no_other_caller_and_no_key_runs_twice() {
    let place = Place::new();
    let settings = || EmbeddedSettings { key_window: Duration::from_secs(10), ..place.clock.settings() };
    let mut store = place.open_with(settings());
    let (mut sent, mut forgotten) = (Vec::new(), 0);
    for second in 0..240 {
        let now_ms = place.clock.right_unix_ms();
        let keys = [uuid_key_of("fast", now_ms + 55_000, second), uuid_key_of("other", now_ms - 50, second)];
        for key in &keys {
            assert_eq!(recall(&store, key), KeyStatus::New, "second {second}: {key:?}");
        }
        commit(&store, &keys);
        sent.extend(keys);
        place.clock.pass(Duration::from_secs(1));
        store.fold().expect("it folds");
        if second % 60 == 59 {
            drop(store);
            store = place.open_with(settings());
        }
        let again = store.load(&[], &sent).expect("it loads").key_statuses;
        assert!(!again.contains(&KeyStatus::New), "second {second}");
        forgotten = again.iter().filter(|recall| **recall == KeyStatus::Expired).count();
    }
    assert!(forgotten > 440, "{forgotten} of {}", sent.len());
    assert_eq!(store.statistics().callers_ahead, 1);
}

#[test]
fn the_entry_of_a_caller_that_is_no_longer_ahead_is_removed() {
    let place = Place::new();
    let settings = || EmbeddedSettings { key_window: Duration::from_secs(10), ..place.clock.settings() };
    let store = place.open_with(settings());
    let fast = uuid_key_of("fast", place.clock.right_unix_ms() + 59_000, 1);
    commit(&store, std::slice::from_ref(&fast));
    let stored = || -> i64 {
        let connection = rusqlite::Connection::open(place.path()).expect("it opens");
        let sql = "SELECT count(*) FROM meta WHERE name = 'forgotten_ahead/fast'";
        connection.query_row(sql, [], |row| row.get(0)).expect("it counts")
    };
    for second in 0..90 {
        place.clock.pass(Duration::from_secs(1));
        commit(&store, &[uuid_key_of("other", place.clock.right_unix_ms(), second)]);
        store.fold().expect("it folds");
        assert_eq!(recall(&store, &fast) == KeyStatus::Expired, second >= 10, "second {second}");
        if second == 30 {
            assert_eq!((store.statistics().callers_ahead, stored()), (1, 1));
        }
    }
    assert_eq!((store.statistics().callers_ahead, stored()), (0, 0));
    assert_eq!(recall(&store, &fast), KeyStatus::Expired);
}

#[test]
fn when_too_many_callers_are_ahead_keys_ahead_of_further_callers_are_refused() {
    let place = Place::new();
    let settings = || EmbeddedSettings { keys_max: 10, ..place.clock.settings() };
    let store = place.open_with(settings());
    let ahead = |caller: u32, number| {
        uuid_key_of(&format!("ahead-{caller}"), place.clock.right_unix_ms() + 20_000 + u64::from(caller), number)
    };
    for caller in 0..10 {
        commit(&store, &[ahead(caller, 1)]);
    }
    let check = |store: &EmbeddedStore| {
        let late = ahead(10, 1);
        assert_eq!(recall(store, &late), KeyStatus::TooFarAhead { ahead_ms: 20_010 });
        assert_eq!(recall(store, &ahead(3, 2)), KeyStatus::New, "who has an entry goes on");
        assert_eq!(recall(store, &uuid_key_of("right", place.clock.right_unix_ms(), 1)), KeyStatus::New);
        late
    };
    check(&store);
    place.clock.pass(Duration::from_millis(1));
    commit(
        &store,
        &(0..10).map(|number| uuid_key_of("right", place.clock.right_unix_ms(), 10 + number)).collect::<Vec<_>>(),
    );
    store.fold().expect("it folds");
    assert_eq!(recall(&store, &uuid_key_of("ahead-3", place.clock.right_unix_ms() + 20_002, 1)), KeyStatus::Expired);
    check(&store);
    drop(store);
    let store = place.open_with(settings());
    let late = check(&store);
    place.clock.pass(Duration::from_millis(20_010));
    assert_eq!(recall(&store, &late), KeyStatus::New, "its time has come");
}

/// Case 50. The caller shares the machine's clock, and so its error.
#[test]
fn case_50_a_clock_that_was_a_year_ahead_affects_only_callers_that_followed_it() {
    const YEAR_MS: u64 = 365 * 86_400_000;
    let place = Place::new();
    let store = place.open();
    place.clock.step_wall_clock(YEAR_MS as i64);
    let misled: Vec<ScopedKey> =
        (0..5).map(|number| uuid_key_of("local", place.clock.right_unix_ms() + YEAR_MS, number)).collect();
    commit(&store, &misled);
    let other = uuid_key_of("other", place.clock.right_unix_ms(), 1);
    commit(&store, std::slice::from_ref(&other));
    place.clock.step_wall_clock(0);
    place.clock.pass(Duration::from_secs(16 * 60));
    store.fold().expect("it folds");
    assert_eq!(store.statistics().remembered_keys, 0);
    drop(store);
    let store = place.open();
    for key in misled.iter().chain([&other]) {
        assert_eq!(recall(&store, key), KeyStatus::Expired);
    }
    let fresh = uuid_key_of("other", place.clock.right_unix_ms(), 2);
    assert_eq!(recall(&store, &fresh), KeyStatus::New);
    assert_eq!(recall(&store, &uuid_key_of("local", place.clock.right_unix_ms(), 9)), KeyStatus::Expired);

    // A day back: nobody may be ahead of it by a day, and no key runs twice.
    place.clock.step_wall_clock(-86_400_000);
    assert_eq!(recall(&store, &fresh), KeyStatus::TooFarAhead { ahead_ms: 86_400_000 });
    assert_eq!(recall(&store, &other), KeyStatus::Expired);
}

#[test]
fn a_retry_gets_the_stored_reply_even_while_the_clock_is_behind_the_key() {
    let place = Place::new();
    let store = place.open();
    let key = uuid_key_of("right", place.clock.right_unix_ms(), 1);
    commit(&store, std::slice::from_ref(&key));
    place.clock.step_wall_clock(-86_400_000);
    assert!(matches!(recall(&store, &key), KeyStatus::Applied { .. }));
}

#[test]
fn a_restored_backup_keeps_the_horizon_of_callers_that_were_ahead() {
    let place = Place::new();
    let settings = || EmbeddedSettings { key_window: Duration::from_secs(10), ..place.clock.settings() };
    let store = place.open_with(settings());
    let fast = uuid_key_of("fast", place.clock.right_unix_ms() + 59_000, 1);
    commit(&store, std::slice::from_ref(&fast));
    place.clock.pass(Duration::from_secs(11));
    store.fold().expect("it folds");
    assert_eq!(recall(&store, &fast), KeyStatus::Expired);
    let (elsewhere, mut watch) = (Place::new(), |_: tools::ProgressUpdate| std::ops::ControlFlow::Continue(()));
    let copy = elsewhere.folder.path().join("backup.db");
    tools::backup(&Snapshot::open(&place.path()).expect("it opens"), &copy, false, &mut watch)
        .expect("it is backed up");
    tools::restore(&copy, &elsewhere.path(), false, 0, &mut || epoch(7), &mut watch).expect("it is restored");
    let restored = EmbeddedStore::open(&elsewhere.path(), settings()).expect("it opens");
    assert_eq!(recall(&restored, &fast), KeyStatus::Expired);
    assert_eq!(recall(&restored, &uuid_key_of("other", place.clock.right_unix_ms(), 1)), KeyStatus::New);
}

#[derive(Debug, Clone)]
enum Step {
    /// A caller sends a new key.
    Send {
        caller: usize,
    },
    /// A key is sent again.
    Repeat {
        which: prop::sample::Index,
    },
    Pass {
        ms: u64,
    },
    /// The wall clock of the service is off from now on.
    WallClock {
        off_ms: i64,
    },
    Fold,
    /// Close without folding, and open again.
    Reopen,
}

/// How far the callers' clocks are off, in milliseconds.
const OFFSETS_MS: [i64; 8] = [0, 0, 59_999, 59_000, 30_000, 500, 1, -5_000];

fn step(wall_clock_steps: bool) -> impl Strategy<Value = Step> {
    let off_ms = prop_oneof![Just(0_i64), -120_000..120_000_i64, Just(86_400_000), Just(-86_400_000)];
    prop_oneof![
        12 => (0..OFFSETS_MS.len()).prop_map(|caller| Step::Send { caller }),
        6 => any::<prop::sample::Index>().prop_map(|which| Step::Repeat { which }),
        4 => prop_oneof![1..50_u64, 50..20_000_u64].prop_map(|ms| Step::Pass { ms }),
        3 => Just(Step::Fold),
        1 => Just(Step::Reopen),
        u32::from(wall_clock_steps) => off_ms.prop_map(|off_ms| Step::WallClock { off_ms }),
    ]
}

fn check_history(keys_max: usize, window_ms: u64, steps: Vec<Step>, clock_is_right: bool) {
    let place = Place::new();
    let settings =
        || EmbeddedSettings { keys_max, key_window: Duration::from_millis(window_ms), ..place.clock.settings() };
    let mut store = place.open_with(settings());
    let (mut sent, mut applied) = (Vec::new(), HashSet::new());
    for (number, step) in steps.into_iter().enumerate() {
        let coming = match step {
            Step::Send { caller } => {
                place.clock.pass(Duration::from_millis(1));
                let key_ms = place.clock.right_unix_ms().saturating_add_signed(OFFSETS_MS[caller]);
                let key = uuid_key_of(&format!("caller-{caller}"), key_ms, number as u32);
                let is_new = recall(&store, &key) == KeyStatus::New;
                assert!(is_new || OFFSETS_MS[caller] != 0 || !clock_is_right, "a fresh key is refused: {key:?}");
                sent.push(key.clone());
                Some(key)
            }
            Step::Repeat { which } if !sent.is_empty() => Some(which.get(&sent).clone()),
            Step::Repeat { .. } => None,
            Step::Pass { ms } => {
                place.clock.pass(Duration::from_millis(ms));
                None
            }
            Step::WallClock { off_ms } => {
                place.clock.step_wall_clock(off_ms);
                None
            }
            Step::Fold => {
                store.fold().expect("it folds");
                None
            }
            Step::Reopen => {
                drop(store);
                store = place.open_with(settings());
                None
            }
        };
        if let Some(key) = coming.filter(|key| recall(&store, key) == KeyStatus::New) {
            commit(&store, std::slice::from_ref(&key));
            assert!(applied.insert(key.clone()), "a key runs twice: {key:?}");
        }
        assert!(store.statistics().callers_ahead <= keys_max * 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn no_key_runs_twice_and_fresh_keys_of_callers_with_correct_clocks_are_accepted(
        keys_max in prop_oneof![1..6_usize, 10..40_usize],
        window_ms in prop_oneof![500..5_000_u64, Just(900_000)],
        steps in prop::collection::vec(step(false), 1..200),
    ) {
        check_history(keys_max, window_ms, steps, true);
    }

    #[test]
    fn case_50_no_key_runs_twice_when_the_wall_clock_of_the_service_steps(
        keys_max in prop_oneof![1..6_usize, 10..40_usize],
        window_ms in prop_oneof![500..5_000_u64, Just(900_000)],
        steps in prop::collection::vec(step(true), 1..200),
    ) {
        check_history(keys_max, window_ms, steps, false);
    }
}
