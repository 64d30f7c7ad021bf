//! Results are delivered in the runtime that waits for them.

use crate::setup::{fresh_call, held, id, world};
use slotcast::engine::{WakeLevel, WatchedInventories};
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs a future to its end on a thread with a runtime of its own, and gives up after a while.
fn on_own_runtime<F: Future<Output: Send> + Send>(future: F) -> F::Output {
    let in_time = async { tokio::time::timeout(Duration::from_secs(30), future).await.unwrap() };
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(in_time)).join().unwrap())
}

fn is_changed(watched: &mut WatchedInventories) -> bool {
    watched.poll_changed(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn an_attached_runtime_gets_its_results_while_the_first_one_does_not_run() {
    let first = runtime();
    let world = first.block_on(async {
        let world = world();
        world.chest("a", 10).await;
        world
    });
    // The first runtime is not polled from here on.
    on_own_runtime(async {
        world.engine.attach_runtime();
        let mut watched = world.engine.watch(vec![id("a")], None).await.unwrap();
        world.engine.mutate(fresh_call(world.add("a", 1))).await.unwrap();
        watched.changed().await;
        assert_eq!(held(watched.states()[0].inventory.as_deref()), 11);
    });
}

#[test]
fn results_for_a_runtime_that_has_ended_are_delivered_in_the_first_one() {
    let (first, thread) = (runtime(), std::thread::current().id());
    let world = first.block_on(async { world() });
    runtime().block_on(async { world.engine.attach_runtime() });
    first.block_on(async {
        world.chest("a", 10).await;
        assert_eq!((world.held("a").await, std::thread::current().id()), (10, thread));
    });
}

#[tokio::test]
async fn a_change_below_the_wake_level_is_found_when_the_level_is_lowered() {
    let world = world();
    world.chest("a", 10).await;
    let mut watched = world.engine.watch(vec![id("a")], None).await.unwrap();
    watched.set_wake_level(WakeLevel::Correction);
    world.engine.mutate(fresh_call(world.add("a", 1))).await.unwrap();
    assert!(!is_changed(&mut watched));
    assert_eq!(held(watched.states()[0].inventory.as_deref()), 11, "the state is visible all the same");
    watched.set_wake_level(WakeLevel::Any);
    assert!(is_changed(&mut watched) && !is_changed(&mut watched));
    world.engine.mutate(fresh_call(world.add("a", 1))).await.unwrap();
    watched.mark_unchanged();
    assert!(!is_changed(&mut watched));
}
