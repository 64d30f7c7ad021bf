//! Sessions: predictions, echoes, and the frames that confirm or correct them.

use crate::common::{Subscriber, TestServer, add, drop, error_of, invalid, precondition, remove, set, stack, with_key};
use slotcast::client::new_mutation_context;
use slotcast::domain::{Attributes, Count, IdempotencyKey, ItemCode, KeyTag, Slot, Stack};
use slotcast::sync::{SyncSettings, Windows};
use slotcast::wire::v1;
use slotcast::wire::v1::FullReason;
use std::time::Duration;
use tonic::Code;

const STONE: u32 = 10;
/// Windows that no test outlasts.
const FOR_EVER: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(60);

/// Starts a server with a chest `a` that has 60 stones, and a reader of the session `mine`. Debounced frames never
/// come.
async fn world() -> (TestServer, Subscriber) {
    let windows = Windows { news: Duration::ZERO, echo: FOR_EVER, tick: Duration::ZERO };
    let server = TestServer::start(SyncSettings { windows, ..SyncSettings::default() }).await;
    server.create("a", "chest", &[(0, "stone", 60)]).await;
    let options = v1::SubscribeInventoryRequest { session: "mine".into(), ..v1::SubscribeInventoryRequest::default() };
    let mut reader = server.subscribe_as(options, &[("a", None)]).await;
    reader.next().await;
    (server, reader)
}

fn stones(count: u32) -> Option<Stack> {
    let (item, count) = (ItemCode::new(STONE).unwrap(), Count::new(count).unwrap());
    Some(Stack { item, count, attributes: Attributes::NONE })
}

/// Returns the context of a mutation by the session `mine`, with its predicted digest of `a`.
fn session_context(predicted: Option<v1::Digest>) -> v1::MutationContext {
    let predicted = predicted.map(|digest| v1::PredictedDigest { inventory_id: "a".into(), digest: Some(digest) });
    v1::MutationContext { session: "mine".into(), predicted: predicted.into_iter().collect(), ..new_mutation_context() }
}

fn reason(message: &v1::SubscribeInventoryResponse) -> Option<FullReason> {
    assert_eq!(message.changes.len(), 1, "{message:?}");
    message.changes[0].full.as_ref().map(v1::FullState::reason)
}

#[tokio::test]
async fn a_confirmed_prediction_sends_no_frame_and_the_next_frame_applies() {
    let (server, mut reader) = world().await;
    for count in [59, 58] {
        let expected = reader.predict(0, &[(Slot(0), stones(count))]);
        let receipt = server.client.mutate(session_context(Some(expected)), drop("a", 0, Some(1))).await.unwrap();
        assert!(receipt.prediction_confirmed && receipt.inventories[0].digest == Some(expected));
    }
    reader.expect_silence(SHORT).await;
    // The delta starts at the revision that the session has predicted.
    server.mutate(add("a", "coal", 1)).await.unwrap();
    let message = reader.next().await;
    assert_eq!((reason(&message), message.changes[0].skipped, message.changes[0].advance), (None, 2, 1));
    assert_eq!(message.changes[0].slots, [1], "the delta omits the predicted slot");
    reader.assert_is_at(0, &server.get("a").await);
}

#[tokio::test]
async fn a_wrong_prediction_is_corrected_immediately_by_a_full_frame() {
    let (server, mut reader) = world().await;
    let expected = reader.predict(0, &[(Slot(0), stones(58))]);
    let receipt = server.client.mutate(session_context(Some(expected)), drop("a", 0, Some(1))).await.unwrap();
    assert!(!receipt.prediction_confirmed);
    assert_eq!(reason(&reader.next().await), Some(FullReason::Correction));
    reader.assert_is_at(0, &server.get("a").await);
}

#[tokio::test]
async fn a_rejected_prediction_is_corrected_immediately() {
    let (server, mut reader) = world().await;
    // Rejected by the rules, for a reused key, as malformed, and for an unknown name.
    server.client.mutate(with_key("used"), add("a", "coal", 1)).await.unwrap();
    reader.next().await;
    let used = |digest| v1::MutationContext { idempotency_key: "used".into(), ..session_context(Some(digest)) };
    for round in 0..4 {
        let expected = reader.predict(0, &[(Slot(5), stones(1))]);
        let (context, operation, refused) = match round {
            0 => (session_context(Some(expected)), remove("a", "stone", 61), precondition("NOT_ENOUGH")),
            1 => (used(expected), add("a", "stone", 1), precondition("IDEMPOTENCY_KEY_REUSED")),
            2 => {
                (session_context(Some(expected)), add("a", "stone", 0), invalid("INVALID_ARGUMENT", "add.stack.count"))
            }
            _ => (session_context(Some(expected)), add("a", "zinc", 1), invalid("UNKNOWN_ITEM", "add.stack.item")),
        };
        let status = server.client.mutate(context, operation).await.unwrap_err();
        assert_eq!(error_of(&status), refused);
        let message = reader.next().await;
        assert_eq!((reason(&message), message.covered.len()), (Some(FullReason::Correction), 0), "round {round}");
        reader.assert_is_at(0, &server.get("a").await);
    }
    assert_eq!(reader.revision(0), 2, "a refusal is no revision");
}

#[tokio::test]
async fn case_43_changes_that_cancel_out_in_one_window_still_correct_a_wrong_prediction() {
    let (server, mut reader) = world().await;
    let before = server.get("a").await.stacks;
    let expected = reader.predict(0, &[(Slot(1), stones(2))]);
    // One commit adds and removes an item; the reader predicted something else.
    let operations = [add("a", "coal", 1), remove("a", "coal", 1)].map(|one| v1::Operation { operation: Some(one) });
    let request =
        v1::TransactRequest { context: Some(session_context(Some(expected))), operations: operations.to_vec() };
    let receipt = server.client.rpc().transact(request).await.unwrap().into_inner().receipt.unwrap();
    assert_eq!((receipt.inventories[0].revision, receipt.prediction_confirmed), (1, false));
    assert_eq!(reason(&reader.next().await), Some(FullReason::Correction));
    reader.assert_is_at(0, &server.get("a").await);

    // The same in two commits.
    let expected = reader.predict(0, &[(Slot(1), stones(2))]);
    server.client.mutate(session_context(Some(expected)), add("a", "coal", 1)).await.unwrap();
    server.client.mutate(session_context(None), remove("a", "coal", 1)).await.unwrap();
    let mut corrected = reason(&reader.next().await) == Some(FullReason::Correction);
    while reader.revision(0) < 3 {
        server.mutate(set("a", 9, Some(stack("dirt", 1)))).await.unwrap();
        corrected |= reason(&reader.next().await) == Some(FullReason::Correction);
    }
    assert!(corrected);
    reader.assert_is_at(0, &server.get("a").await);
    server.mutate(set("a", 9, None)).await.unwrap();
    assert_eq!(server.get("a").await.stacks, before);
}

#[tokio::test]
async fn an_echo_waits_and_is_sent_with_news() {
    let (server, mut reader) = world().await;
    let mut other = server.subscribe(&[("a", None)]).await;
    other.next().await;
    server.client.mutate(session_context(None), drop("a", 0, Some(1))).await.unwrap();
    other.read_until(0, 2).await;
    reader.expect_silence(SHORT).await;
    server.mutate(add("a", "coal", 1)).await.unwrap();
    let message = reader.next().await;
    assert_eq!((reason(&message), message.changes[0].advance), (None, 2));
    reader.assert_is_at(0, &server.get("a").await);
}

#[tokio::test]
async fn a_frame_lists_the_keys_of_its_session_and_optionally_notices_of_all_changes() {
    let (server, _) = world().await;
    let options = v1::SubscribeInventoryRequest { session: "mine".into(), notices: true, inventories: vec![] };
    let mut reader = server.subscribe_as(options, &[("a", None)]).await;
    reader.next().await;
    let of_mine =
        v1::MutationContext { idempotency_key: "my-key".into(), reason: "dug up".into(), ..session_context(None) };
    server.client.mutate(of_mine, add("a", "stone", 1)).await.unwrap();
    let theirs = v1::MutationContext { reason: "burned".into(), ..with_key("their-key") };
    server.client_named("furnace").mutate(theirs, remove("a", "stone", 2)).await.unwrap();
    let message = reader.next().await;
    assert_eq!(message.covered, [KeyTag::of(&IdempotencyKey::new("my-key").unwrap()).0]);
    let epoch = server.version("a").await.epoch;
    let notice = |revision, kind: v1::ChangeKind, caller: &str, reason: &str| v1::Notice {
        watch: 0,
        epoch,
        revision,
        kind: kind.into(),
        caller: caller.into(),
        reason: reason.into(),
    };
    let expected =
        [notice(2, v1::ChangeKind::Add, "test", "dug up"), notice(3, v1::ChangeKind::Remove, "furnace", "burned")];
    assert_eq!((message.notices.as_slice(), message.notices_dropped), (&expected[..], 0));
}

#[tokio::test]
async fn a_reported_desync_is_repaired_by_a_full_frame() {
    let (server, mut reader) = world().await;
    let wrong = reader.predict(0, &[(Slot(3), stones(7))]);
    let report = |inventory_id: &str, session: &str| v1::ReportDesyncRequest {
        session: session.into(),
        have: Some(v1::InventoryVersion {
            inventory_id: inventory_id.into(),
            epoch: 1,
            revision: 1,
            digest: Some(wrong),
        }),
    };
    let mut rpc = server.client.rpc();
    let reply = rpc.report_desync(report("a", "mine")).await.unwrap().into_inner();
    assert_eq!(reply.current, Some(server.version("a").await));
    assert_eq!(reason(&reader.next().await), Some(FullReason::Correction));
    reader.assert_is_at(0, &server.get("a").await);

    rpc.report_desync(report("a", "another")).await.unwrap();
    reader.expect_silence(SHORT).await;
    let status = rpc.report_desync(report("nowhere", "mine")).await.unwrap_err();
    assert_eq!(error_of(&status), (Code::NotFound, "INVENTORY_NOT_FOUND".into(), None));
    let status = rpc.report_desync(report("a", "")).await.unwrap_err();
    assert_eq!(error_of(&status), invalid("INVALID_ARGUMENT", "session"));
}
