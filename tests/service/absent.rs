//! Watches of inventories that do not exist: they are absent, and followed as soon as they exist.

use crate::common::{Subscriber, TestServer, add, create_named, delete, error_of, immediate, with_key};
use slotcast::client::{Client, new_mutation_context};
use slotcast::sync::SyncSettings;
use slotcast::wire::v1;
use slotcast::wire::v1::FullReason;
use std::time::Duration;
use tonic::Code;

fn absent(watch: u32) -> v1::InventoryChange {
    v1::InventoryChange { watch, absent: true, ..v1::InventoryChange::default() }
}

/// Returns the reasons of the full states in a message, by watch.
fn fulls(message: &v1::SubscribeInventoryResponse) -> Vec<(u32, FullReason)> {
    message.changes.iter().filter_map(|change| Some((change.watch, change.full.as_ref()?.reason()))).collect()
}

#[tokio::test]
async fn a_nonexistent_inventory_is_absent_and_followed_once_it_is_created() {
    for sync in [immediate(), SyncSettings::immediate_full()] {
        let server = TestServer::start(sync).await;
        server.create("bag", "player", &[(0, "stone", 5)]).await;
        let mut reader = server.subscribe(&[("chest", None), ("bag", None), ("barrel", None)]).await;
        let first = reader.next().await;
        assert!(first.caught_up, "nothing else is waited for");
        assert_eq!(fulls(&first), [(1, FullReason::Initial)]);
        assert_eq!(first.changes[1..], [absent(0), absent(2)], "the message contains nothing else about them");
        server.mutate(add("bag", "coal", 1)).await.unwrap();
        reader.read_until(1, 2).await;
        server.create("chest", "chest", &[(3, "coal", 7)]).await;
        assert_eq!(fulls(&reader.next().await), [(0, FullReason::Initial)]);
        reader.assert_is_at(0, &server.get("chest").await);
        server.mutate(add("chest", "coal", 1)).await.unwrap();
        reader.read_until(0, 2).await;
        reader.assert_is_at(0, &server.get("chest").await);
    }
}

#[tokio::test]
async fn a_deleted_inventory_is_absent_without_a_revision_also_after_a_resume() {
    let server = TestServer::start(immediate()).await;
    server.create("bag", "player", &[]).await;
    server.create("chest", "chest", &[(0, "stone", 5)]).await;
    let mut reader = server.subscribe(&[("bag", None), ("chest", None)]).await;
    reader.next().await;
    let (bag, chest) = (reader.cursor(0), reader.cursor(1));
    let receipt = server.mutate(delete("chest")).await.unwrap();
    assert_eq!(receipt.inventories[0].revision, 2, "the receipt tells the revision");
    let message = reader.next().await;
    assert_eq!(message, v1::SubscribeInventoryResponse { changes: vec![absent(1)], ..Default::default() });

    let mut resumed = server.subscribe(&[("bag", Some(bag)), ("chest", Some(chest))]).await;
    let message = resumed.next().await;
    let expected = v1::SubscribeInventoryResponse { changes: vec![absent(1)], caught_up: true, ..Default::default() };
    assert_eq!(message, expected);
    server.create("chest", "player", &[(35, "coal", 1)]).await;
    for reader in [&mut reader, &mut resumed] {
        assert_eq!(fulls(&reader.next().await), [(1, FullReason::Initial)]);
        reader.assert_is_at(1, &server.get("chest").await);
    }
    let mut late = server.subscribe(&[("chest", Some(chest))]).await;
    assert_eq!(fulls(&late.next().await), [(0, FullReason::EpochChanged)], "the cursor is of the life before");
    late.assert_is_at(0, &server.get("chest").await);
}

#[tokio::test]
async fn notices_report_who_deleted_an_inventory_at_which_revision() {
    let server = TestServer::start(immediate()).await;
    server.create("chest", "chest", &[]).await;
    let options = v1::SubscribeInventoryRequest { notices: true, ..Default::default() };
    let mut reader = server.subscribe_as(options, &[("chest", None)]).await;
    reader.next().await;
    let epoch = server.version("chest").await.epoch;
    let context = v1::MutationContext { reason: "burned".into(), ..with_key("fire") };
    server.client.mutate(context, delete("chest")).await.unwrap();
    let message = reader.next().await;
    assert_eq!(message.changes, [absent(0)]);
    let kind = v1::ChangeKind::Delete.into();
    let notice = v1::Notice { watch: 0, epoch, revision: 2, kind, caller: "test".into(), reason: "burned".into() };
    assert_eq!(message.notices, [notice]);
}

#[tokio::test]
async fn a_heartbeat_has_no_marks_of_absent_inventories() {
    let server = TestServer::start(SyncSettings { heartbeat: Duration::from_millis(40), ..immediate() }).await;
    let mut reader = server.subscribe(&[("nowhere", None), ("chest", None)]).await;
    assert_eq!(reader.next().await.changes, [absent(0), absent(1)]);
    assert_eq!(reader.next().await, v1::SubscribeInventoryResponse::default());
    server.create("chest", "chest", &[]).await;
    reader.read_until(1, 1).await;
    let marks = reader.next().await.marks;
    assert_eq!(marks.iter().map(|mark| (mark.watch, mark.revision)).collect::<Vec<_>>(), [(1, 1)]);
}

#[tokio::test]
async fn a_transfer_into_an_inventory_created_in_the_same_commit_is_one_frame() {
    let server = TestServer::start(immediate()).await;
    server.create("bag", "player", &[(0, "stone", 5)]).await;
    let mut reader = server.subscribe(&[("bag", None), ("ground", None)]).await;
    reader.next().await;
    let drop = crate::common::transfer("bag", "ground", "stone", 5);
    server.transact(vec![create_named("ground"), drop]).await.unwrap();
    let message = reader.next().await;
    assert_eq!((message.changes.len(), fulls(&message)), (2, vec![(1, FullReason::Initial)]));
    server.transact(vec![crate::common::transfer("ground", "bag", "stone", 5), delete("ground")]).await.unwrap();
    let message = reader.next().await;
    assert_eq!((message.changes.len(), &message.changes[1]), (2, &absent(1)));
    reader.assert_is_at(0, &server.get("bag").await);
}

#[tokio::test]
async fn the_client_reports_absent_inventories_and_follows_the_others_across_reconnects() {
    let server = TestServer::start(immediate()).await;
    server.create("bag", "player", &[]).await;
    let mut follow = server.client.follow(vec!["bag".into(), "chest".into()]);
    let first = follow.next().await.unwrap();
    assert_eq!((first.changed, first.absent, follow.is_absent(1)), (vec![0], vec![1], true));
    server.create("chest", "chest", &[]).await;
    let update = follow.next().await.unwrap();
    assert_eq!((update.changed, follow.is_absent(1), follow.replica(1).is_some()), (vec![1], false, true));
    server.mutate(delete("chest")).await.unwrap();
    assert_eq!(follow.next().await.unwrap().absent, [1]);
    for round in 1..=2 {
        follow.disconnect();
        server.mutate(add("bag", "coal", 1)).await.unwrap();
        let resumed = follow.next().await.unwrap();
        assert_eq!((resumed.changed, resumed.absent), (vec![0], vec![1]), "round {round}");
        assert!(follow.is_absent(1) && follow.replica(1).is_none());
    }
    server.create("chest", "player", &[]).await;
    assert_eq!(follow.next().await.unwrap().changed, [1]);
    assert_eq!((follow.is_absent(1), follow.counts().desyncs), (false, 0));
}

async fn session(client: &Client, ids: &[&str]) -> slotcast::client::Session {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let session = client.session(slotcast::client::SessionOptions::new(ids), client.catalog().await.unwrap()).unwrap();
    session.caught_up().await.unwrap();
    session
}

/// Waits for events of a session until a condition is true.
async fn until(session: &slotcast::client::Session, is_done: impl Fn() -> bool) {
    let reached = async {
        while !is_done() {
            session.next_event().await.expect("the session continues");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reached).await.expect("in time");
}

#[tokio::test]
async fn a_session_shows_nothing_of_an_absent_inventory_and_predicts_again_once_it_exists() {
    let server = TestServer::start(immediate()).await;
    server.create("bag", "player", &[(0, "stone", 5)]).await;
    let session = session(&server.client, &["bag", "chest"]).await;
    assert!(session.is_absent(1) && session.view(1).is_none());
    let to_chest = || crate::common::transfer("bag", "chest", "stone", 1);
    let refused = session.apply(to_chest()).unwrap();
    assert!(!refused.predicted, "upon nothing it is not predicted");
    session.settled().await.unwrap();
    assert_eq!(session.view(0).unwrap().stack(slotcast::domain::Slot(0)).unwrap().count.get(), 5);
    server.create("chest", "chest", &[]).await;
    until(&session, || !session.is_absent(1)).await;
    assert!(session.apply(to_chest()).unwrap().predicted);
    session.settled().await.unwrap();
    server.mutate(delete("chest")).await.unwrap();
    until(&session, || session.is_absent(1)).await;
    assert!(session.view(1).is_none() && session.confirmed(1).is_none());
    assert!(!session.apply(to_chest()).unwrap().predicted);
    session.settled().await.unwrap();
    let counts = session.counts();
    assert_eq!((counts.desyncs, counts.reconnects, session.pending()), (0, 0, 0));
    assert_eq!(server.held("bag").await, 4);
}

#[tokio::test]
async fn reading_a_nonexistent_inventory_returns_not_found() {
    let server = TestServer::start(immediate()).await;
    let _watching: Subscriber = server.subscribe(&[("nowhere", None)]).await;
    let request = v1::GetInventoryRequest { inventory_id: "nowhere".into() };
    let status = server.client.rpc().get_inventory(request).await.unwrap_err();
    assert_eq!(error_of(&status), (Code::NotFound, "INVENTORY_NOT_FOUND".into(), None));
    let status = server.client.mutate(new_mutation_context(), add("nowhere", "coal", 1)).await.unwrap_err();
    assert_eq!(error_of(&status), (Code::NotFound, "INVENTORY_NOT_FOUND".into(), None));
}
