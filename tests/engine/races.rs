//! Concurrent, cancelled and repeated calls over the real store.

use crate::setup::{World, call, fresh_call, held, id, restart, start, world};
use slotcast::domain::{Fingerprint, Operation, RejectionCause};
use slotcast::engine::{EngineError, EngineSettings, MutationReply, MutationRequest};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn case_18_opposite_transfers_never_deadlock_and_conserve_items() {
    let world = world();
    world.chest("a", 60).await;
    world.chest("b", 60).await;
    let tasks = (0..10_000).map(|n| {
        let (from, to) = if n % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let (engine, call) = (world.engine.clone(), fresh_call(world.transfer(from, to, 1)));
        tokio::spawn(async move { engine.mutate(call).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(_) => {}
            Err(EngineError::Rejected(rejection)) => {
                assert!(matches!(rejection.cause, RejectionCause::NotEnough { .. }), "{rejection:?}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(world.held("a").await + world.held("b").await, 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_19_a_ring_of_transfers_conserves_items() {
    let world = world();
    for name in ["a", "b", "c"] {
        world.chest(name, 30).await;
    }
    let ring = [("a", "b"), ("b", "c"), ("c", "a")];
    let tasks = (0..3_000).map(|n| {
        let (from, to) = ring[n % 3];
        let (engine, call) = (world.engine.clone(), fresh_call(world.transfer(from, to, 1 + n as u32 % 5)));
        tokio::spawn(async move { engine.mutate(call).await.is_ok() })
    });
    let mut done = 0;
    for task in tasks.collect::<Vec<_>>() {
        done += u32::from(task.await.unwrap());
    }
    assert!(done > 100, "{done}");
    assert_eq!(world.held("a").await + world.held("b").await + world.held("c").await, 90);
}

#[tokio::test]
async fn case_20_two_concurrent_transfers_of_one_stack_have_one_winner() {
    let world = world();
    for (name, stones) in [("shop", 10), ("ann", 0), ("bob", 0)] {
        world.chest(name, stones).await;
    }
    let (ann, bob) = tokio::join!(
        world.engine.mutate(fresh_call(world.transfer("shop", "ann", 10))),
        world.engine.mutate(fresh_call(world.transfer("shop", "bob", 10))),
    );
    assert!(ann.is_ok() ^ bob.is_ok(), "{ann:?} {bob:?}");
    assert_eq!((world.held("shop").await, world.held("ann").await + world.held("bob").await), (0, 10));
}

#[tokio::test]
async fn case_21_a_transfer_to_an_inventory_that_fills_up_concurrently_changes_neither_side() {
    let world = world();
    world.chest("from", 64).await;
    world.chest("to", 0).await;
    let (filled, transferred) = tokio::join!(
        world.engine.mutate(fresh_call(world.add("to", 27 * 64))),
        world.engine.mutate(fresh_call(world.transfer("from", "to", 64))),
    );
    filled.unwrap();
    let Err(EngineError::Rejected(rejection)) = transferred else { panic!("{transferred:?}") };
    assert!(matches!(rejection.cause, RejectionCause::NoRoom { room: 0, .. }), "{rejection:?}");
    assert_eq!((world.held("from").await, world.revision("from").await), (64, 1));
    assert_eq!((world.held("to").await, world.revision("to").await), (27 * 64, 2));
}

#[tokio::test]
async fn case_22_a_transfer_concurrent_with_a_deletion_is_atomic() {
    let world = world();
    for round in 0..50 {
        let (from, to) = (format!("from-{round}"), format!("to-{round}"));
        world.chest(&from, 10).await;
        world.chest(&to, 0).await;
        let transfer = world.engine.mutate(fresh_call(world.transfer(&from, &to, 10)));
        let delete = world.engine.mutate(fresh_call(Operation::Delete { id: id(&to) }));
        let (transferred, deleted) =
            if round % 2 == 0 { tokio::join!(transfer, delete) } else { swap(tokio::join!(delete, transfer)) };
        deleted.unwrap();
        let left = if transferred.is_ok() { 0 } else { 10 };
        assert_eq!(world.held(&from).await, left, "what was not transferred is still there");
        assert_eq!(world.engine.read(&id(&to)).await, Ok(None));
    }
}

fn swap<A, B>((a, b): (A, B)) -> (B, A) {
    (b, a)
}

#[tokio::test]
async fn case_25_case_30_a_call_cancelled_at_any_await_is_atomic() {
    let world = world();
    world.chest("a", 60).await;
    world.chest("b", 0).await;
    for polls in 0..6 {
        let call = fresh_call(world.transfer("a", "b", 1));
        {
            let mut future = std::pin::pin!(world.engine.mutate(call.clone()));
            let mut context = Context::from_waker(Waker::noop());
            for _ in 0..polls {
                if let Poll::Ready(answer) = future.as_mut().poll(&mut context) {
                    answer.unwrap();
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(world.held("a").await + world.held("b").await, 60);
        let retried = world.engine.mutate(call).await.unwrap();
        assert_eq!(retried.replayed, polls > 0, "once it was queued it runs, and the retry tells so");
        assert_eq!(world.held("b").await, polls + 1);
    }
}

#[tokio::test]
async fn case_26_the_same_key_in_flight_and_after_a_restart_gets_the_same_reply() {
    let world = world();
    world.chest("a", 0).await;
    let call = fresh_call(world.add("a", 5));
    let (one, other) = tokio::join!(world.engine.mutate(call.clone()), world.engine.mutate(call.clone()));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.replayed, other.replayed), (false, true));
    assert_eq!(one.reply, other.reply);

    let World { folder, engine, .. } = world;
    let store = restart(engine, folder.path()).await;
    let (engine, _) = start(store, EngineSettings::default());
    assert_eq!(engine.mutate(call.clone()).await, Ok(MutationReply { replayed: true, ..one }));
    let other_payload = MutationRequest { payload: Fingerprint(1), ..call };
    assert_eq!(engine.mutate(other_payload).await, Err(EngineError::KeyReused));
    assert_eq!(held(engine.read(&id("a")).await.unwrap().as_deref()), 5);
}

#[tokio::test]
async fn a_key_from_the_future_is_rejected() {
    let world = world();
    world.chest("a", 0).await;
    let next_year = call("0265b0c0-0000-7000-8000-000000000000", world.add("a", 1));
    assert!(matches!(world.engine.mutate(next_year).await, Err(EngineError::KeyFromTheFuture { .. })));
    assert_eq!(world.held("a").await, 0);
}
