//! The fold beside concurrent commits and reads.

mod store_support;

use slotcast::domain::Slot;
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::{ListQuery, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use store_support::*;

#[test]
fn reads_and_lists_are_consistent_during_folds() {
    let place = Place::new();
    let store = Arc::new(place.open_with(frequent_folds()));
    // Two inventories in each commit, always equal: whoever reads both must see them equal.
    let twins = [inventory("twin-a", Some("ann"), 1, 9, &[]), inventory("twin-b", Some("ann"), 1, 9, &[])];
    store.commit(&[transaction(key("twins"), twins.iter().map(created).collect())]).expect("it commits");
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2).map(|_| spawn_reader(store.clone(), stop.clone())).collect();
    let mut history = History::new(3, 40);
    let mut states = twins;
    for round in 0..1_500_u32 {
        let touched: Vec<_> =
            states.iter().map(|twin| updated(twin, vec![(Slot((round % 9) as u16), stack(1, round + 1))])).collect();
        states = [0, 1].map(|twin: usize| touched[twin].state.clone().expect("it is there"));
        let mut batch = vec![transaction(key(&format!("twins-{round}")), touched)];
        batch.extend(history.batch());
        store.commit(&batch).expect("it commits");
    }
    stop.store(true, Ordering::SeqCst);
    let reads: u64 = readers.into_iter().map(|reader| reader.join().expect("no reader saw anything wrong")).sum();
    assert!(reads > 0);
    assert!(store.statistics().generations_folded > 0);
    history.model.apply(&[transaction(key("twins-last"), states.iter().map(created).collect())]);
    history.model.keys.clear();
    history.model.check(&*store);
    let wal_bytes = store.statistics().wal_bytes;
    assert!(wal_bytes < 4 << 20, "the log has grown to {wal_bytes} bytes");
}

fn spawn_reader(store: Arc<EmbeddedStore>, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let ids = [id("twin-a"), id("twin-b")];
    let query = ListQuery { owner: Some(player("ann")), prefix: "twin".into(), limit: 5, ..ListQuery::default() };
    std::thread::spawn(move || {
        let (mut reads, mut last) = (0, 0);
        while !stop.load(Ordering::SeqCst) {
            let loaded = store.load(&ids, &[key("twins")]).expect("it loads");
            let revisions: Vec<u64> =
                loaded.inventories.iter().flatten().map(|twin| twin.contents.revision().0).collect();
            assert_eq!(revisions[0], revisions[1]);
            assert!(revisions[0] >= last, "a read went back");
            let listed: Vec<u64> =
                list_all(&*store, query.clone()).iter().map(|twin| twin.contents.revision().0).collect();
            assert_eq!(listed.len(), 2);
            assert!(listed[0] >= revisions[0] && listed[1] >= revisions[1], "a list was older than a read before it");
            last = revisions[0];
            reads += 1;
        }
        reads
    })
}

/// With an ordinary lock the fold would write all its slices before a commit gets the lock.
#[test]
fn commits_and_slices_of_the_fold_take_turns() {
    const INVENTORIES: usize = 100;
    let place = Place::new();
    let readings = Arc::new(AtomicUsize::new(0));
    // A slice of one row reads the clock twice while it holds the write lock. These readings are counted, and make the
    // slice last for 2 ms.
    let counted = readings.clone();
    let clock = move || {
        if std::thread::current().name() == Some("slotcast-fold") {
            counted.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        Duration::ZERO
    };
    let settings = EmbeddedSettings { slice: Duration::ZERO, clock: Arc::new(clock), ..place.clock.settings() };
    let store = place.open_with(settings);
    let all = (1..=INVENTORIES).map(|number| created(&inventory(&format!("inv-{number}"), None, 1, 9, &[])));
    store.commit(&[transaction(key("all"), all.collect())]).expect("it commits");
    let is_folded = AtomicBool::new(false);
    let first = readings.load(Ordering::SeqCst);
    let (slices, commits) = std::thread::scope(|scope| {
        scope.spawn(|| {
            store.fold().expect("it folds");
            is_folded.store(true, Ordering::SeqCst);
        });
        let slices = || (readings.load(Ordering::SeqCst) - first) / 2;
        // The number of slices before each commit.
        let mut commits = Vec::new();
        while !is_folded.load(Ordering::SeqCst) {
            commits.push(slices());
            store.commit(&[transaction(key(&commits.len().to_string()), vec![])]).expect("it commits");
        }
        (slices(), commits)
    });
    assert!(slices >= INVENTORIES, "only {slices} slices");
    // Medians, because another process may take the processor from one of the threads for a while.
    let mut waits: Vec<usize> = commits.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(median(&mut waits) <= Some(2), "commits wait for several slices: {commits:?}");
    let in_slice = |slice: usize| commits.iter().filter(|before| **before == slice).count();
    let mut in_slices: Vec<usize> = (5..INVENTORIES - 5).map(in_slice).collect();
    assert!(median(&mut in_slices) <= Some(2), "the fold waits for several commits: {commits:?}");
    assert!(commits.len() > INVENTORIES / 10, "commits wait for many slices: {commits:?}");
}

fn median(numbers: &mut [usize]) -> Option<usize> {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied()
}
