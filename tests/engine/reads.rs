//! Reads of inventories that are not in memory run beside the commit loop.

use crate::setup::{World, create_chest, fresh_call, id, open, start, start_with_held_commit};
use slotcast::domain::InventoryId;
use slotcast::engine::{Engine, EngineError, EngineSettings};
use slotcast::store::embedded::EmbeddedStore;
use slotcast::store::log::ChainHead;
use slotcast::store::{CommitError, ListPage, ListQuery, Loaded, MutationRecord, ScopedKey, Store, StoreError};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::task::JoinHandle;

fn read(engine: &Engine, name: &str) -> JoinHandle<Result<bool, EngineError>> {
    let (engine, id) = (engine.clone(), id(name));
    tokio::spawn(async move { engine.read(&id).await.map(|found| found.is_some()) })
}

#[tokio::test]
async fn reads_of_missing_inventories_do_not_wait_for_commits_and_leave_nothing_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, release, first) = start_with_held_commit(folder.path()).await;
    for round in 0..10 {
        let reads: Vec<_> = (0..500).map(|n| read(&engine, &format!("missing-{round}-{n}"))).collect();
        for read in reads {
            assert_eq!(read.await.unwrap(), Ok(false));
        }
    }
    let after = engine.statistics();
    assert_eq!(after.queue, 0);
    assert!(after.hot_inventories <= 1, "at most the inventory of the commit that is held");
    assert_eq!(engine.list(ListQuery { limit: 10, ..ListQuery::default() }).await, Ok(ListPage::default()));
    assert_eq!(engine.read(&id("first")).await, Ok(None), "its creation is not committed");
    assert!(!first.is_finished());
    drop(release);
    first.await.unwrap().unwrap();
    assert!(engine.read(&id("first")).await.unwrap().is_some());
}

/// A store that calls `before_load` before each read of inventories or keys; if it fails, so does the read.
struct CheckedReads<F> {
    inner: EmbeddedStore,
    before_load: F,
}

impl<F: Fn(&[InventoryId]) -> Result<(), StoreError> + Send + Sync + 'static> Store for CheckedReads<F> {
    fn load(&self, ids: &[InventoryId], keys: &[ScopedKey]) -> Result<Loaded, StoreError> {
        (self.before_load)(ids)?;
        self.inner.load(ids, keys)
    }

    fn commit(&self, batch: &[MutationRecord]) -> Result<Vec<ChainHead>, CommitError> {
        self.inner.commit(batch)
    }

    fn list(&self, query: &ListQuery) -> Result<ListPage, StoreError> {
        self.inner.list(query)
    }
}

/// Returns a function that waits until the sender is dropped.
fn gate() -> (mpsc::Sender<()>, impl Fn() + Send + Sync + 'static) {
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    (release, move || while gate.lock().unwrap().recv().is_ok() {})
}

#[tokio::test]
async fn reads_beyond_the_limit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (release, wait) = gate();
    let before_load = move |_: &[InventoryId]| {
        wait();
        Ok(())
    };
    let store = CheckedReads { inner: open(folder.path()), before_load };
    let settings = EngineSettings { queue_wait: Duration::from_secs(60), ..EngineSettings::default() };
    let (engine, _) = start(Arc::new(store), settings);
    let reads: Vec<_> = (0..3_000).map(|n| read(&engine, &format!("missing-{n}"))).collect();
    while reads.iter().filter(|read| read.is_finished()).count() < 1_500 {
        tokio::task::yield_now().await;
    }
    drop(release);
    let (mut found_missing, mut refused) = (0, 0);
    for read in reads {
        match read.await.unwrap() {
            Ok(exists) => found_missing += u32::from(!exists),
            Err(EngineError::QueueFull { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(found_missing >= 1_024 && refused >= 1_500, "{found_missing} answered, {refused} refused");
}

#[tokio::test]
async fn a_repeated_read_that_fails_once_does_not_hide_other_inventories() {
    let folder = tempfile::tempdir().unwrap();
    let (release, wait) = gate();
    let (blocked, attempts_of_twice) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(1)));
    // The store cannot read several inventories at once, nor `twice` at the first attempt. The read of `blocker` waits.
    let before_load = {
        let (blocked, attempts_of_twice) = (blocked.clone(), attempts_of_twice.clone());
        move |ids: &[InventoryId]| {
            let unavailable = Err(StoreError::Unavailable { detail: "planted".into() });
            match ids {
                [blocker] if blocker.as_str().starts_with("blocker") => {
                    blocked.fetch_add(1, Ordering::SeqCst);
                    wait();
                    Ok(())
                }
                [_, _, ..] => unavailable,
                [twice] if twice.as_str() == "twice" && attempts_of_twice.fetch_add(1, Ordering::SeqCst) == 0 => {
                    unavailable
                }
                _ => Ok(()),
            }
        }
    };
    let store = Arc::new(CheckedReads { inner: open(folder.path()), before_load });
    let (engine, _) = start(store.clone(), EngineSettings::default());
    for name in ["twice", "other"] {
        engine.mutate(fresh_call(create_chest(name))).await.unwrap();
    }
    // Another engine on the same store has nothing in memory.
    let settings = EngineSettings { queue_wait: Duration::from_secs(60), ..EngineSettings::default() };
    let (engine, _) = start(store, settings);
    attempts_of_twice.store(0, Ordering::SeqCst);
    let _blocker = read(&engine, "blocker");
    while blocked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // The reader is blocked, so these reads are in one step.
    let reads: Vec<_> = ["twice", "twice", "other"].map(|name| read(&engine, name)).into();
    tokio::task::yield_now().await;
    drop(release);
    let mut results = Vec::new();
    for read in reads {
        results.push(read.await.unwrap());
    }
    assert_eq!(results[2], Ok(true), "{results:?}");
    assert!(results[..2].iter().all(|result| matches!(result, Err(EngineError::Store(_)))), "{results:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_race_with_commits_and_eviction_are_never_older_than_acknowledged_mutations() {
    const INVENTORIES: usize = 6;
    let settings = EngineSettings { hot_max: 2, ..EngineSettings::default() };
    let folder = tempfile::tempdir().unwrap();
    let (engine, catalog) = start(Arc::new(open(folder.path())), settings);
    let world = Arc::new(World { folder, engine, catalog });
    let acknowledged: Arc<[AtomicU32; INVENTORIES]> = Arc::default();
    for n in 0..INVENTORIES {
        world.chest(&format!("chest-{n}"), 0).await;
    }
    let mutator = async |world: Arc<World>, acknowledged: Arc<[AtomicU32; INVENTORIES]>| {
        for n in 0..1_200 {
            world.engine.mutate(fresh_call(world.add(&format!("chest-{}", n % INVENTORIES), 1))).await.unwrap();
            acknowledged[n % INVENTORIES].fetch_add(1, Ordering::SeqCst);
        }
    };
    let reader = async |world: Arc<World>, acknowledged: Arc<[AtomicU32; INVENTORIES]>| {
        let mut last = [0; INVENTORIES];
        while last.iter().sum::<u32>() < 1_200 {
            for (n, last) in last.iter_mut().enumerate() {
                let floor = acknowledged[n].load(Ordering::SeqCst).max(*last);
                let held = world.held(&format!("chest-{n}")).await;
                assert!(held >= floor, "read {held} after {floor} were acknowledged or read");
                *last = held;
            }
        }
    };
    let tasks = [
        tokio::spawn(reader(world.clone(), acknowledged.clone())),
        tokio::spawn(reader(world.clone(), acknowledged.clone())),
    ];
    mutator(world.clone(), acknowledged).await;
    for task in tasks {
        task.await.unwrap();
    }
}
