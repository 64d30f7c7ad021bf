//! Bounded queue and memory.

use crate::setup::{GatedStore, World, fresh_call, id, open, start, world};
use slotcast::domain::{LayoutId, Operation};
use slotcast::engine::{EngineError, EngineSettings};
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
