//! Bounded queue and memory.

use crate::setup::{GatedStore, World, call, count, fresh_call, id, open, send, start, world};
use slotcast::catalog_file;
use slotcast::domain::{Attributes, ItemRef, LayoutId, Operation, Slot, Stack};
use slotcast::engine::{Engine, EngineError, EngineSettings};
use slotcast::store::ListQuery;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

#[tokio::test]
async fn nonexistent_inventories_leave_memory_once_they_are_unwatched() {
    let world = world();
    world.chest("a", 10).await;
    let hot = || world.engine.statistics().hot_inventories;
    let missing = |first: u32| (first..first + 64).map(|n| id(&format!("missing-{n}"))).collect::<Vec<_>>();
    let (one, other) =
        (world.engine.watch(missing(0), None).await.unwrap(), world.engine.watch(missing(32), None).await.unwrap());
    assert_eq!(hot(), 1 + 96);
    drop(one);
    assert_eq!(hot(), 1 + 64, "those that are still watched stay");
    let mut created = world.engine.watch(vec![id("missing-40")], None).await.unwrap();
    world.chest("missing-40", 3).await;
    created.changed().await;
    assert!(created.states()[0].inventory.is_some() && other.states()[8].inventory.is_some());
    drop((created, other));
    assert_eq!(hot(), 2, "what exists by now stays");
    world.engine.mutate(fresh_call(Operation::Delete { id: id("missing-40") })).await.unwrap();
    assert_eq!(world.engine.read(&id("missing-40")).await.unwrap(), None);
    for n in 0..50 {
        assert_eq!(world.engine.read(&id(&format!("never-{n}"))).await.unwrap(), None);
    }
    assert_eq!((hot(), world.held("a").await), (1, 10));
}

#[tokio::test]
async fn a_full_queue_rejects_calls_instead_of_growing() {
    let settings = EngineSettings { queue_max: 4, queue_wait: Duration::from_millis(20), ..EngineSettings::default() };
    let folder = tempfile::tempdir().unwrap();
    let (release, gate) = mpsc::channel::<()>();
    let store = GatedStore { inner: open(folder.path()), gate: Mutex::new(gate) };
    let (engine, catalog) = start(Arc::new(store), settings);
    let world = World { folder, engine, catalog };
    let chest = LayoutId::new("chest").unwrap();
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let create =
                Operation::Create { id: id(&format!("chest-{n}")), owner: None, layout: chest.clone(), stacks: vec![] };
            let (engine, call) = (world.engine.clone(), fresh_call(create));
            tokio::spawn(async move { engine.mutate(call).await })
        })
        .collect();
    // The queue has room for 4, and the commit that waits took at most as many before it.
    let all_but_8_answered = async {
        while calls.iter().filter(|call| call.is_finished()).count() < 12 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all_but_8_answered).await.unwrap();
    drop(release);
    let (mut done, mut refused) = (0, 0);
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => done += 1,
            Err(EngineError::QueueFull { retry_after }) => {
                assert_eq!(retry_after, Duration::from_millis(20));
                refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!((4..=8).contains(&done), "{done} done, {refused} refused");
    let listed = world.engine.list(ListQuery { limit: 100, ..ListQuery::default() }).await.unwrap();
    assert_eq!(listed.inventories.len(), done, "those refused did nothing");
}

#[tokio::test]
async fn inventories_above_the_hot_limit_are_reloaded_without_loss() {
    let settings = EngineSettings { hot_max: 8, ..EngineSettings::default() };
    let folder = tempfile::tempdir().unwrap();
    let (engine, catalog) = start(Arc::new(open(folder.path())), settings);
    let world = World { folder, engine, catalog };
    for n in 0..200 {
        world.chest(&format!("chest-{n}"), 1 + n % 64).await;
    }
    for n in 0..200 {
        let name = format!("chest-{n}");
        if n % 64 != 63 {
            world.engine.mutate(fresh_call(world.add(&name, 1))).await.unwrap();
            assert_eq!(world.held(&name).await, 2 + n % 64);
        }
    }
}

#[tokio::test]
async fn a_batch_with_very_large_records_is_committed_in_parts() {
    const VAULTS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let catalog = "items = [{ id = 'map', code = 1, max_stack = 1 }]
        layouts = [{ id = 'vault', sections = [{ name = 'main', slots = 1024 }] }]";
    let catalog_path = folder.path().join("catalog.toml");
    std::fs::write(&catalog_path, catalog).unwrap();
    let catalog = Arc::new(catalog_file::read(&catalog_path).unwrap());
    let (release, gate) = mpsc::channel::<()>();
    let store = GatedStore { inner: open(folder.path()), gate: Mutex::new(gate) };
    let engine = Engine::start(Arc::new(store), catalog, EngineSettings::default()).0;
    let stack = |slot| {
        let attributes = Attributes::new(&[slot as u8; Attributes::BYTES_MAX]).unwrap();
        (Slot(slot), Stack { item: ItemRef::Id("map".into()), count: count(1), attributes })
    };
    let stacks: Vec<_> = (0..1024).map(stack).collect();
    let vault = |number: usize| id(&format!("vault-{number}"));
    let create = |number| Operation::Create {
        id: vault(number),
        owner: None,
        layout: LayoutId::new("vault").unwrap(),
        stacks: stacks.clone(),
    };
    // The first commit waits; all others are in the next batch: 40 MiB of created states, and as much of deleted ones.
    let mut calls = vec![send(&engine, fresh_call(Operation::Delete { id: id("nothing") }))];
    calls.extend((0..VAULTS).map(|number| send(&engine, fresh_call(create(number)))));
    let delete = |number: usize| call(&format!("delete-{number}"), Operation::Delete { id: vault(number) });
    calls.extend((0..VAULTS).map(|number| send(&engine, delete(number))));
    let retries: Vec<_> = (0..VAULTS).map(|number| send(&engine, delete(number))).collect();
    tokio::task::yield_now().await;
    drop(release);
    assert!(calls.remove(0).await.unwrap().is_err(), "it does not exist");
    for call in calls {
        assert!(!call.await.unwrap().unwrap().replayed);
    }
    for retry in retries {
        assert!(retry.await.unwrap().unwrap().replayed, "a mutation of an earlier part is known");
    }
    let commits = engine.statistics().commits;
    assert!((3..10).contains(&commits), "{commits} commits");
}
