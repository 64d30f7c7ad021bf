//! Expectations, transactions and retries.

use crate::common::{
    TestServer, add, create_named, delete, drop, error_of, immediate, metadata, precondition, remove, set, transfer,
    with_key,
};
use slotcast::client::new_mutation_context;
use slotcast::wire::v1;
use std::time::Duration;
use tonic::Code;

/// Starts a server with a chest `a` that has 60 stones, and an empty chest `b`.
async fn world() -> TestServer {
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[(0, "stone", 60)]).await;
    server.create("b", "chest", &[]).await;
    server
}

#[tokio::test]
async fn case_23_a_stale_guard_is_aborted_with_the_current_revision() {
    let server = world().await;
    let epoch = server.version("a").await.epoch;
    server.client.mutate(guarded("a", epoch, 1), drop("a", 0, Some(1))).await.unwrap();
    for (epoch_sent, stale) in [(epoch, 1), (epoch, 3), (other_than(epoch), 2)] {
        let status = server.client.mutate(guarded("a", epoch_sent, stale), drop("a", 0, Some(1))).await.unwrap_err();
        assert_eq!(error_of(&status), (Code::Aborted, "STALE_REVISION".into(), None));
        assert_eq!(metadata(&status, "current_revision").as_deref(), Some("2"));
        assert_eq!(metadata(&status, "epoch"), Some(epoch.to_string()));
        let words = format!("at revision 2 of epoch {epoch}, expected revision {stale} of epoch {epoch_sent}");
        assert!(status.message().contains(&words), "{}", status.message());
    }
    assert_eq!(server.held("a").await, 59);
}

fn guarded(id: &str, epoch: u32, revision: u64) -> v1::MutationContext {
    let expected = vec![v1::ExpectedRevision { inventory_id: id.into(), revision, epoch }];
    v1::MutationContext { expected, ..new_mutation_context() }
}

fn other_than(epoch: u32) -> u32 {
    epoch % u32::MAX + 1
}

#[tokio::test]
async fn a_guard_without_epoch_or_revision_is_rejected_with_the_field() {
    let server = world().await;
    let epoch = server.version("a").await.epoch;
    let good = v1::ExpectedRevision { inventory_id: "a".into(), revision: 1, epoch };
    for (bad, field) in [
        (v1::ExpectedRevision { epoch: 0, ..good.clone() }, "epoch"),
        (v1::ExpectedRevision { revision: 0, ..good.clone() }, "revision"),
        (v1::ExpectedRevision { inventory_id: String::new(), ..good.clone() }, "inventory_id"),
    ] {
        let context = v1::MutationContext { expected: vec![good.clone(), bad], ..new_mutation_context() };
        let status = server.client.mutate(context, drop("a", 0, Some(1))).await.unwrap_err();
        assert_eq!(
            (status.code(), error_of(&status).2),
            (Code::InvalidArgument, Some(format!("context.expected[1].{field}")))
        );
    }
    let context = v1::MutationContext { expected: vec![good.clone(); 65], ..new_mutation_context() };
    let status = server.client.mutate(context, drop("a", 0, Some(1))).await.unwrap_err();
    assert_eq!(error_of(&status).2.as_deref(), Some("context.expected"));
    let context = v1::MutationContext { expected: vec![good; 64], ..new_mutation_context() };
    server.client.mutate(context, drop("a", 0, Some(1))).await.unwrap();
}

#[tokio::test]
async fn a_guard_from_before_a_deletion_is_stale_after_a_recreation() {
    let server = world().await;
    let coal = server.version("a").await;
    server.mutate(delete("a")).await.unwrap();
    let status = server.client.mutate(guarded("a", coal.epoch, 1), transfer("a", "b", "coal", 1)).await.unwrap_err();
    assert_eq!(error_of(&status).1, "INVENTORY_NOT_FOUND");
    server.create("a", "chest", &[(0, "diamond_sword", 1)]).await;
    let sword = server.version("a").await;
    assert_eq!((coal.revision, sword.revision), (1, 1));
    for taking in [transfer("a", "b", "diamond_sword", 1), delete("a")] {
        let status = server.client.mutate(guarded("a", coal.epoch, 1), taking).await.unwrap_err();
        assert_eq!(error_of(&status).1, "STALE_REVISION");
        assert_eq!(metadata(&status, "epoch"), Some(sword.epoch.to_string()));
    }
    assert_eq!((server.held("a").await, server.held("b").await), (1, 0));
    server.client.mutate(guarded("a", sword.epoch, 1), transfer("a", "b", "diamond_sword", 1)).await.unwrap();
}

#[tokio::test]
async fn a_receipt_includes_a_transient_inventory_also_on_a_retry() {
    let server = world().await;
    let operations = || {
        vec![create_named("gone"), transfer("a", "gone", "stone", 5), transfer("gone", "b", "stone", 5), delete("gone")]
    };
    let transact = async || {
        let operations = operations().into_iter().map(|operation| v1::Operation { operation: Some(operation) });
        let request = v1::TransactRequest { context: Some(with_key("k")), operations: operations.collect() };
        server.client.rpc().transact(request).await.unwrap().into_inner().receipt.unwrap()
    };
    let first = transact().await;
    let named: Vec<_> = first.inventories.iter().map(|version| (&*version.inventory_id, version.revision)).collect();
    assert_eq!(named, [("gone", 2), ("a", 2), ("b", 2)]);
    assert_eq!(first.inventories[0].digest, Some(v1::Digest::default()));
    assert_ne!(first.inventories[0].epoch, 0);
    let again = transact().await;
    assert!(again.replayed);
    assert_eq!(again.inventories, first.inventories);
    assert_eq!((server.held("a").await, server.held("b").await), (55, 5));
    let status = server.client.rpc().get_inventory(v1::GetInventoryRequest { inventory_id: "gone".into() }).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn case_24_when_the_third_operation_fails_none_is_applied() {
    let server = world().await;
    let operations =
        vec![remove("a", "stone", 10), add("b", "stone", 10), remove("a", "stone", 51), add("b", "coal", 1)];
    let status = server.transact(operations).await.unwrap_err();
    assert_eq!(error_of(&status), precondition("NOT_ENOUGH"));
    assert_eq!(metadata(&status, "operation").as_deref(), Some("2"));
    assert_eq!(metadata(&status, "held").as_deref(), Some("50"), "as the operations before it had left it");
    assert_eq!((server.version("a").await.revision, server.version("b").await.revision), (1, 1));

    let reply = server.transact(vec![remove("a", "stone", 10), add("b", "stone", 10), remove("a", "stone", 50)]).await;
    let receipt = reply.unwrap().receipt.unwrap();
    let revisions: Vec<_> =
        receipt.inventories.iter().map(|version| (version.inventory_id.as_str(), version.revision)).collect();
    assert_eq!(revisions, [("a", 2), ("b", 2)], "one revision each");
    assert_eq!((server.held("a").await, server.held("b").await), (0, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_26_the_same_key_in_flight_twice_has_one_effect_and_one_reply() {
    let server = world().await;
    for (round, ahead) in [false, true].into_iter().enumerate() {
        let before = (server.held("a").await, server.store.commits());
        let context = with_key(&format!("key-{round}"));
        // Both calls are in flight while commits are held; behind another call they are in one batch.
        server.store.pause_commits();
        let send = |context, operation| {
            let client = server.client.clone();
            tokio::spawn(async move { client.mutate(context, operation).await })
        };
        let first = ahead.then(|| send(new_mutation_context(), add("b", "stone", 1)));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let twice = [(); 2].map(|()| send(context.clone(), drop("a", 0, Some(7))));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(twice.iter().all(|call| !call.is_finished()), "nothing is answered before it is durable");
        server.store.resume_commits();
        let [one, other] = twice.map(async |call| call.await.unwrap().unwrap());
        let (one, other) = (one.await, other.await);
        assert_eq!(one.inventories, other.inventories);
        assert_eq!(u8::from(one.replayed) + u8::from(other.replayed), 1, "one of them was the first");
        if let Some(first) = first {
            first.await.unwrap().unwrap();
        }
        let after = (server.held("a").await, server.store.commits());
        assert_eq!(after, (before.0 - 7, before.1 + 1 + usize::from(ahead)));
    }
}

#[tokio::test]
async fn case_26_a_retry_returns_the_original_reply_despite_later_changes() {
    let server = world().await;
    let request = |context: v1::MutationContext| v1::DropItemRequest {
        context: Some(context),
        drop: Some(v1::DropItem { inventory_id: "a".into(), from: Some(v1::SlotQuantity { slot: 0, count: None }) }),
    };
    let mut rpc = server.client.rpc();
    let first = rpc.drop_item(request(with_key("k"))).await.unwrap().into_inner();
    assert_eq!(first.dropped.as_ref().unwrap().count, 60);
    server.mutate(add("a", "coal", 3)).await.unwrap();
    let mut again = rpc.drop_item(request(with_key("k"))).await.unwrap().into_inner();
    assert!(again.receipt.as_ref().unwrap().replayed);
    again.receipt.as_mut().unwrap().replayed = false;
    assert_eq!(again, first);
    // The store also remembers a mutation without a change.
    let nothing = server.client.mutate(with_key("n"), set("b", 3, None)).await.unwrap();
    assert_eq!((nothing.replayed, nothing.inventories[0].revision), (false, 1));
    assert!(server.client.mutate(with_key("n"), set("b", 3, None)).await.unwrap().replayed);
    // It does not remember a rejection: the same call can succeed later.
    let remove_coal = || remove("a", "coal", 5);
    assert_eq!(
        error_of(&server.client.mutate(with_key("r"), remove_coal()).await.unwrap_err()),
        precondition("NOT_ENOUGH")
    );
    server.mutate(add("a", "coal", 2)).await.unwrap();
    assert!(!server.client.mutate(with_key("r"), remove_coal()).await.unwrap().replayed);
}

#[tokio::test]
async fn case_27_the_same_key_with_another_payload_is_rejected() {
    let server = world().await;
    server.client.mutate(with_key("k"), drop("a", 0, Some(1))).await.unwrap();
    for other in [drop("a", 0, Some(2)), drop("a", 0, None), add("a", "stone", 1), create_named("c")] {
        let status = server.client.mutate(with_key("k"), other).await.unwrap_err();
        assert_eq!(error_of(&status), precondition("IDEMPOTENCY_KEY_REUSED"));
    }
    let expected =
        vec![v1::ExpectedRevision { inventory_id: "a".into(), revision: 2, epoch: server.version("a").await.epoch }];
    let context = v1::MutationContext { expected, ..with_key("k") };
    let status = server.client.mutate(context, drop("a", 0, Some(1))).await.unwrap_err();
    assert_eq!(error_of(&status), precondition("IDEMPOTENCY_KEY_REUSED"), "what is expected is part of the payload");
    // The reason is not part of the payload.
    let context = v1::MutationContext { reason: "again".into(), ..with_key("k") };
    assert!(server.client.mutate(context, drop("a", 0, Some(1))).await.unwrap().replayed);
    assert_eq!(server.held("a").await, 59);
}

#[tokio::test]
async fn case_28_an_expired_key_is_rejected_and_never_runs_again() {
    let server = world().await;
    let context = new_mutation_context();
    server.client.mutate(context.clone(), drop("a", 0, Some(1))).await.unwrap();
    server.store.expire_keys();
    let status = server.client.mutate(context, drop("a", 0, Some(1))).await.unwrap_err();
    assert_eq!(error_of(&status), precondition("IDEMPOTENCY_KEY_EXPIRED"));
    assert_eq!(server.held("a").await, 59);
    tokio::time::sleep(Duration::from_millis(2)).await;
    server.mutate(drop("a", 0, Some(1))).await.unwrap();
}

#[tokio::test]
async fn case_29_two_callers_with_the_same_key_are_independent() {
    let server = world().await;
    let other = server.client_named("another server");
    let one = server.client.mutate(with_key("k"), drop("a", 0, Some(1))).await.unwrap();
    let two = other.mutate(with_key("k"), drop("a", 0, Some(2))).await.unwrap();
    assert!(!one.replayed && !two.replayed);
    assert_eq!(server.held("a").await, 57);
}

#[tokio::test]
async fn a_transfer_is_one_commit_on_both_sides() {
    let server = world().await;
    let receipt = server.mutate(transfer("a", "b", "stone", 25)).await.unwrap();
    let versions: Vec<_> =
        receipt.inventories.iter().map(|version| (version.inventory_id.as_str(), version.revision)).collect();
    assert_eq!(versions, [("a", 2), ("b", 2)]);
    assert_eq!(receipt.inventories, [server.version("a").await, server.version("b").await]);
    assert_eq!((server.held("a").await, server.held("b").await), (35, 25));
    // Two creations and the transfer.
    assert_eq!(server.store.commits(), 3);
}
