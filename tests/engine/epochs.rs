//! Guards and receipts when an epoch ends and a new one begins: by deletion, within a batch or a mutation, or by a restore.

use crate::setup::{
    World, call_with, create_chest, fresh_call, id, open, restart, send, start, start_with_held_commit, world,
};
use slotcast::domain::{Digest, Guard, Operation, Rejection, RejectionCause, Revision, SessionId, Version};
use slotcast::engine::{EngineError, EngineSettings, MutationReply, MutationRequest, new_epoch};
use slotcast::store::embedded::tools::{self, Snapshot};
use std::ops::ControlFlow;
use std::sync::Arc;

#[tokio::test]
async fn a_guard_sees_deletions_and_creations_by_earlier_mutations_of_its_batch() {
    let world = world();
    world.chest("a", 10).await;
    world.chest("b", 10).await;
    let [a, b] = [world.guard("a").await, world.guard("b").await];
    let World { folder, engine, catalog } = world;
    drop(restart(engine, folder.path()).await);
    let (engine, release, first) = start_with_held_commit(folder.path()).await;
    let world = World { folder, engine, catalog };
    let recreate = vec![Operation::Delete { id: id("a") }, create_chest("a"), world.add("a", 3)];
    let calls = [
        call_with("recreate", recreate, vec![a.clone()]),
        call_with("delete", vec![Operation::Delete { id: id("b") }], vec![b.clone()]),
        call_with("take", vec![world.transfer("a", "first", 1)], vec![a.clone()]),
        call_with("take from none", vec![world.add("first", 1)], vec![b]),
    ];
    let [recreated, deleted, stale, missing] = calls.map(|call| send(&world.engine, call));
    while world.engine.statistics().queue < 4 {
        tokio::task::yield_now().await;
    }
    drop(release);
    first.await.unwrap().unwrap();
    let recreated = recreated.await.unwrap().unwrap();
    let now = &recreated.reply.versions[0];
    assert_eq!((now.revision, now.epoch == a.epoch), (Revision::CREATED, false));
    deleted.await.unwrap().unwrap();
    let cause = |answer: Result<MutationReply, EngineError>| match answer {
        Err(EngineError::Rejected(rejection)) => rejection.cause,
        other => panic!("{other:?}"),
    };
    let expected = RejectionCause::StaleRevision { expected: a, epoch: now.epoch, revision: now.revision };
    assert_eq!(cause(stale.await.unwrap()), expected);
    assert_eq!(cause(missing.await.unwrap()), RejectionCause::InventoryNotFound { id: id("b") });
}

#[tokio::test]
async fn a_transient_inventory_appears_only_in_the_reply_of_its_mutation() {
    let world = world();
    world.chest("a", 10).await;
    let mut watched = world.engine.watch(vec![id("passing"), id("a")], None).await.unwrap();
    let through = || {
        let delete = || Operation::Delete { id: id("passing") };
        let (there, back) = (world.transfer("a", "passing", 4), world.transfer("passing", "a", 1));
        vec![create_chest("passing"), there, back, delete(), create_chest("passing"), delete()]
    };
    // The session predicted the final state, and still gets no frame: the stream cannot be behind.
    let (session, predicted) = (SessionId::new("mine").ok(), vec![(id("passing"), Digest::EMPTY)]);
    let call = MutationRequest { session, predicted, ..call_with("through", through(), vec![]) };
    let first = world.engine.mutate(call.clone()).await.unwrap();
    let named: Vec<_> = first.reply.versions.iter().map(|version| (version.id.as_str(), version.revision.0)).collect();
    assert_eq!((named, first.reply.versions[0].digest), (vec![("passing", 2), ("a", 2)], Digest::EMPTY));
    assert!(first.prediction_confirmed);
    watched.changed().await;
    let [passing, a] = &watched.states()[..] else { panic!("two are watched") };
    assert_eq!(
        (&passing.inventory, passing.records_total(), a.records_total()),
        (&None, 0, 1),
        "no stream hears of what never was"
    );

    // An inventory that existed before and does not exist after the mutation: the deletion of its first epoch is reported.
    let lives = vec![Operation::Delete { id: id("a") }, create_chest("a"), Operation::Delete { id: id("a") }];
    let epoch = first.reply.versions[1].epoch;
    let ended = world.engine.mutate(call_with("lives", lives, vec![])).await.unwrap();
    let version = Version { id: id("a"), epoch, revision: Revision(3), digest: Digest::EMPTY };
    assert_eq!(ended.reply.versions, [version]);

    drop(watched);
    let World { folder, engine, .. } = world;
    let store = restart(engine, folder.path()).await;
    let findings =
        tools::check(&Snapshot::open(&folder.path().join("slotcast.db")).unwrap(), &mut |_| ControlFlow::Continue(()));
    assert_eq!((findings.problems, findings.inventories), (vec![], 0));
    let (engine, _) = start(store, EngineSettings::default());
    assert_eq!(engine.mutate(call).await, Ok(MutationReply { replayed: true, prediction_confirmed: false, ..first }));
    assert_eq!(engine.read(&id("passing")).await, Ok(None));
}

#[tokio::test]
async fn a_guard_from_before_a_restore_is_stale_after_it_at_the_same_revision() {
    let world = world();
    world.chest("a", 10).await;
    let quiet = &mut |_| ControlFlow::Continue(());
    let (store, copy) = (world.folder.path().join("slotcast.db"), world.folder.path().join("copy.db"));
    tools::backup(&Snapshot::open(&store).unwrap(), &copy, false, quiet).unwrap();
    world.engine.mutate(fresh_call(world.add("a", 1))).await.unwrap();
    let before = world.guard("a").await;
    assert_eq!(before.revision, Revision(2));

    let World { folder, engine, catalog } = world;
    drop(restart(engine, folder.path()).await);
    tools::restore(&copy, &store, true, 1, &mut new_epoch, quiet).unwrap();
    let engine = start(Arc::new(open(folder.path())), EngineSettings::default()).0;
    let world = World { folder, engine, catalog };
    world.engine.mutate(fresh_call(world.add("a", 2))).await.unwrap();
    let after = world.guard("a").await;
    assert_eq!(after.revision, before.revision, "only the epoch tells them apart");
    let take = |key, guard: &Guard| call_with(key, vec![Operation::Delete { id: id("a") }], vec![guard.clone()]);
    let refused = world.engine.mutate(take("stale", &before)).await.unwrap_err();
    let cause = RejectionCause::StaleRevision { expected: before, epoch: after.epoch, revision: after.revision };
    assert_eq!(refused, EngineError::Rejected(Rejection { operation: 0, cause, item_id: None }));
    world.engine.mutate(take("current", &after)).await.unwrap();
}
