//! Failed commits, a full disk, and damaged inventories.

use crate::faulty_store::{Fault, FaultyStore};
use crate::setup::{World, call, fresh_call, id, open, restart, send, start, start_with_held_commit, world};
use slotcast::catalog_file::default_catalog;
use slotcast::domain::{LayoutId, Operation, Slot};
use slotcast::engine::{Engine, EngineError, EngineSettings};
use slotcast::store::StoreError;
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use std::sync::Arc;
use tempfile::TempDir;

#[tokio::test]
async fn case_44_on_a_full_disk_mutations_fail_reads_succeed_and_the_store_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slotcast.db");
    let settings = EmbeddedSettings { bytes_max: Some(512 * 1024), ..EmbeddedSettings::default() };
    let store = EmbeddedStore::open(&path, settings).unwrap();
    let (engine, catalog) = start(Arc::new(store), EngineSettings::default());
    let world = World { folder, engine, catalog };
    let mut chests = 0;
    let refused = loop {
        let stacks = (0..27).map(|slot| (Slot(slot), world.stack("stone", 64))).collect();
        let layout = LayoutId::new("chest").unwrap();
        let create = Operation::Create { id: id(&format!("chest-{chests}")), owner: None, layout, stacks };
        match world.engine.mutate(fresh_call(create)).await {
            Ok(_) => chests += 1,
            Err(refusal) => break refusal,
        }
        assert!(chests < 100_000, "it never gets full");
    };
    assert!(matches!(refused, EngineError::Store(StoreError::Full { .. })), "{refused:?}");
    assert!(chests > 10, "{chests}");
    assert_eq!(world.held("chest-0").await, 27 * 64, "reads go on");
    assert_eq!(world.engine.read(&id(&format!("chest-{chests}"))).await, Ok(None), "nothing of it is there");

    let World { folder, engine, catalog } = world;
    let store = restart(engine, folder.path()).await;
    let (engine, _) = start(store, EngineSettings::default());
    let world = World { folder, engine, catalog };
    assert_eq!(world.held("chest-0").await, 27 * 64);
    world.chest("one more", 1).await;
    assert_eq!(world.held("one more").await, 1);
}

fn faulty() -> (TempDir, Arc<FaultyStore<EmbeddedStore>>) {
    let folder = tempfile::tempdir().unwrap();
    let store = FaultyStore::new(open(folder.path()));
    (folder, Arc::new(store))
}

fn unavailable() -> StoreError {
    StoreError::Unavailable { detail: "as the test says".into() }
}

#[tokio::test]
async fn a_failed_commit_changes_nothing_and_is_never_visible() {
    let (folder, store) = faulty();
    let (engine, catalog) = start(store.clone(), EngineSettings::default());
    let world = World { folder, engine, catalog };
    world.chest("a", 10).await;
    world.chest("b", 0).await;
    let mut watched = world.engine.watch(vec![id("a"), id("b")], None).await.unwrap();
    let before = watched.states();
    store.fail_next_commit(Fault::NotCommitted(unavailable()));
    let call = fresh_call(world.transfer("a", "b", 10));
    assert_eq!(world.engine.mutate(call.clone()).await, Err(EngineError::Store(unavailable())));
    assert_eq!(watched.states(), before);
    assert_eq!((world.held("a").await, world.held("b").await), (10, 0));

    let answer = world.engine.mutate(call).await.unwrap();
    assert!(!answer.replayed, "the first try left no trace");
    watched.changed().await;
    assert_eq!((world.held("a").await, world.held("b").await), (0, 10));
}

#[tokio::test]
async fn case_45_after_a_commit_with_unknown_outcome_nothing_is_written() {
    let (folder, store) = faulty();
    let catalog = Arc::new(default_catalog());
    let (engine, mut commit_loop) = Engine::start(store.clone(), catalog.clone(), EngineSettings::default());
    let world = World { folder, engine, catalog };
    world.chest("a", 10).await;
    store.fail_next_commit(Fault::UnknownAfter(unavailable()));
    assert_eq!(world.engine.mutate(fresh_call(world.add("a", 1))).await, Err(EngineError::CommitUnknown));
    commit_loop.wait_for_failure().await;
    let after = world.engine.mutate(fresh_call(world.add("a", 1))).await;
    assert!(matches!(after, Err(EngineError::Store(StoreError::Unavailable { .. }))), "{after:?}");
    assert_eq!(world.held("a").await, 10, "what was durable is still read");
}

/// In one batch of four calls, only the calls on the corrupt inventory fail. A retry of a call that was applied to it
/// before still gets its reply.
#[tokio::test]
async fn case_48_a_corrupt_inventory_fails_only_the_calls_that_need_it() {
    let World { folder, engine, catalog } = world();
    let world = World { folder, engine, catalog };
    world.chest("good", 1).await;
    world.chest("bad", 1).await;
    let before = call("before", world.add("bad", 2));
    world.engine.mutate(before.clone()).await.unwrap();
    let World { folder, engine, catalog } = world;
    let store = restart(engine, folder.path()).await;
    store.fold().unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(folder.path().join("slotcast.db")).unwrap();
    connection.execute("UPDATE inventories SET checksum = checksum + 1 WHERE id = 'bad'", []).unwrap();
    drop(connection);

    let (engine, release, first) = start_with_held_commit(folder.path()).await;
    let world = World { folder, engine, catalog };
    let calls = [
        fresh_call(world.add("good", 1)),
        fresh_call(world.add("bad", 1)),
        before,
        fresh_call(world.transfer("good", "bad", 1)),
    ];
    let [good, bad, again, both] = calls.map(|call| send(&world.engine, call));
    while world.engine.statistics().queue < 4 {
        tokio::task::yield_now().await;
    }
    drop(release);
    first.await.unwrap().unwrap();
    let is_corrupt = |answer| matches!(answer, Err(EngineError::Store(StoreError::Corrupt { .. })));
    assert!(good.await.unwrap().is_ok());
    assert!(is_corrupt(bad.await.unwrap()));
    assert!(is_corrupt(both.await.unwrap()));
    assert!(again.await.unwrap().unwrap().replayed);
    assert_eq!(world.held("good").await, 2);
    assert!(matches!(world.engine.read(&id("bad")).await, Err(EngineError::Store(StoreError::Corrupt { .. }))));
}
