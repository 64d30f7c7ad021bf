//! Subscriptions: the frames that a reader gets, from any cursor and at any reading speed.

use crate::common::{
    Subscriber, TestServer, add, create_named, delete, drop, error_of, immediate, remove, set, stack, transfer,
};
use slotcast::client::{Client, new_mutation_context};
use slotcast::sync::{SyncSettings, Windows};
use slotcast::wire::v1;
use slotcast::wire::v1::FullReason;
use slotcast::wire::v1::inventory_service_client::InventoryServiceClient;
use std::time::Duration;
use tonic::Code;
use tonic::transport::Endpoint;

/// Returns the only change of a message, and the reason if it is a full state.
fn only_change(message: &v1::SubscribeInventoryResponse) -> (Option<FullReason>, &v1::InventoryChange) {
    assert_eq!(message.changes.len(), 1, "{message:?}");
    let change = &message.changes[0];
    (change.full.as_ref().map(v1::FullState::reason), change)
}

#[tokio::test]
async fn the_first_message_contains_the_full_state_and_the_caught_up_mark() {
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[(3, "stone", 5)]).await;
    server.create("b", "player", &[]).await;
    let mut reader = server.subscribe(&[("b", None), ("a", None)]).await;
    let first = reader.next().await;
    assert!(first.caught_up);
    let sizes: Vec<_> =
        first.changes.iter().map(|change| (change.watch, change.full.as_ref().unwrap().slots)).collect();
    assert_eq!(sizes, [(0, 36), (1, 27)], "positions are those of the request");
    reader.assert_is_at(0, &server.get("b").await);
    reader.assert_is_at(1, &server.get("a").await);
    server.mutate(add("a", "coal", 1)).await.unwrap();
    let second = reader.next().await;
    assert!(!second.caught_up, "it is set once");
    assert_eq!(only_change(&second).0, None);
}

#[tokio::test]
async fn case_33_a_cursor_from_the_future_or_of_another_epoch_gets_a_full_frame_with_the_reason() {
    let server = TestServer::start(immediate()).await;
    let v1::InventoryVersion { epoch, revision, .. } = server.create("a", "chest", &[(0, "stone", 5)]).await;
    for (cursor, reason) in [
        (v1::Cursor { epoch, revision: revision + 1 }, FullReason::FromTheFuture),
        (v1::Cursor { epoch, revision: u64::MAX }, FullReason::FromTheFuture),
        (v1::Cursor { epoch: epoch ^ 1, revision }, FullReason::EpochChanged),
        (v1::Cursor { epoch: 0, revision }, FullReason::Initial),
    ] {
        let mut reader = server.subscribe(&[("a", Some(cursor))]).await;
        let message = reader.next().await;
        assert_eq!(only_change(&message).0, Some(reason));
        reader.assert_is_at(0, &server.get("a").await);
    }
}

#[tokio::test]
async fn case_34_a_resume_from_an_old_cursor_is_an_ordinary_delta_or_full_frame() {
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[(0, "stone", 64)]).await;
    let mut reader = server.subscribe(&[("a", None)]).await;
    reader.next().await;
    for _ in 0..200 {
        server.mutate(add("a", "coal", 1)).await.unwrap();
        server.mutate(remove("a", "coal", 1)).await.unwrap();
    }
    server.mutate(drop("a", 0, Some(1))).await.unwrap();
    // 401 revisions have changed two slots.
    let behind = reader.replicas[0].clone();
    let mut resumed = server.subscribe(&[("a", Some(reader.cursor(0)))]).await;
    resumed.replicas[0].clone_from(&behind);
    let message = resumed.next().await;
    let (full, change) = only_change(&message);
    assert_eq!(
        (full, change.advance, change.slots.as_slice(), change.counts.as_slice()),
        (None, 401, &[0, 1][..], &[63, 0][..])
    );
    assert!(message.caught_up);
    resumed.assert_is_at(0, &server.get("a").await);
    // A current cursor gets no change.
    let mut same = server.subscribe(&[("a", Some(resumed.cursor(0)))]).await;
    assert_eq!(same.next().await, v1::SubscribeInventoryResponse { caught_up: true, ..Default::default() });
    // More than ten changed slots are sent as a full state.
    for slot in 10..21 {
        server.mutate(set("a", slot, Some(stack("dirt", 1)))).await.unwrap();
    }
    let mut resumed = server.subscribe(&[("a", Some(reader.cursor(0)))]).await;
    assert_eq!(only_change(&resumed.next().await).0, Some(FullReason::ManyChanges));
    resumed.assert_is_at(0, &server.get("a").await);
}

#[tokio::test]
async fn case_35_a_recreated_inventory_has_a_new_epoch_and_is_sent_in_full() {
    let server = TestServer::start(immediate()).await;
    let old = server.create("a", "chest", &[(0, "stone", 5)]).await;
    let mut reader = server.subscribe(&[("a", None)]).await;
    reader.next().await;
    server.mutate(delete("a")).await.unwrap();
    let message = reader.next().await;
    assert!(only_change(&message).1.absent && reader.replicas[0].is_none());
    let new = server.create("a", "player", &[(35, "coal", 1)]).await;
    assert_ne!(new.epoch, old.epoch);
    assert_eq!(only_change(&reader.next().await).0, Some(FullReason::Initial));
    reader.assert_is_at(0, &server.get("a").await);

    // A deletion and recreation in one commit is never absent, and the cursor of the old epoch is stale.
    let cursor = reader.cursor(0);
    server.transact(vec![delete("a"), create_named("a")]).await.unwrap();
    assert_eq!(only_change(&reader.next().await).0, Some(FullReason::EpochChanged));
    let mut resumed = server.subscribe(&[("a", Some(cursor))]).await;
    assert_eq!(only_change(&resumed.next().await).0, Some(FullReason::EpochChanged));
    resumed.assert_is_at(0, &server.get("a").await);
}

#[tokio::test]
async fn watches_require_valid_and_distinct_ids() {
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[]).await;
    let watch = |id: &str| v1::Watch { inventory_id: id.into(), ..v1::Watch::default() };
    for (ids, expected) in [
        (vec!["a", "a"], crate::common::invalid("INVALID_ARGUMENT", "inventories[1].inventory_id")),
        (vec![""], crate::common::invalid("INVALID_ARGUMENT", "inventories[0].inventory_id")),
        (vec!["a"; 65], crate::common::invalid("INVALID_ARGUMENT", "inventories")),
    ] {
        let inventories = ids.into_iter().map(watch).collect();
        let request = v1::SubscribeInventoryRequest { inventories, ..v1::SubscribeInventoryRequest::default() };
        let status = server.client.rpc().subscribe_inventory(request).await.unwrap_err();
        assert_eq!(error_of(&status), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_36_subscribing_during_commits_leaves_no_gap_and_no_duplicate() {
    const COMMITS: u64 = 400;
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[]).await;
    let client = server.client.clone();
    let writer = tokio::spawn(async move {
        for n in 0..COMMITS {
            let operation = if n % 3 == 2 { remove("a", "coal", 2) } else { add("a", "coal", 1) };
            client.mutate(new_mutation_context(), operation).await.unwrap();
        }
    });
    let (mut readers, mut seen) = (Vec::new(), Vec::new());
    while !writer.is_finished() {
        let mut reader = server.subscribe(&[("a", None)]).await;
        reader.next().await;
        seen.push(reader.revision(0));
        readers.push(reader);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    writer.await.unwrap();
    let last = server.get("a").await;
    for reader in &mut readers {
        // Applying a frame checks that its base matches the replica.
        reader.read_until(0, 1 + COMMITS).await;
        reader.assert_is_at(0, &last);
    }
    let middle = seen.iter().filter(|revision| (2..COMMITS).contains(*revision)).count();
    assert!(middle >= 5, "they did subscribe in the middle: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_39_many_small_frames_do_not_disconnect_slow_readers() {
    const STREAMS: usize = 40;
    const COMMITS: u64 = 400;
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[]).await;
    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        let mut reader = server.subscribe(&[("a", None)]).await;
        reader.next().await;
        readers.push(reader);
    }
    // Nobody reads meanwhile. HTTP/2 libraries treat many small unread frames on a connection as an attack.
    for _ in 0..COMMITS {
        server.mutate(add("a", "coal", 1)).await.unwrap();
    }
    let last = server.get("a").await;
    for reader in &mut readers {
        reader.read_until(0, 1 + COMMITS).await;
        reader.assert_is_at(0, &last);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_is_never_split_across_two_frames() {
    for sync in [
        immediate(),
        SyncSettings { windows: Windows { news: Duration::from_millis(3), ..Windows::NONE }, ..immediate() },
    ] {
        let server = TestServer::start(sync).await;
        server.create("a", "chest", &[(0, "stone", 64)]).await;
        server.create("b", "chest", &[]).await;
        let mut reader = server.subscribe(&[("a", None), ("b", None)]).await;
        reader.next().await;
        let (there, back) = (server.client.clone(), server.client.clone());
        let carry = async |client: Client, from: &str, to: &str| {
            for _ in 0..150 {
                // The transfer is rejected when the source is empty.
                let _ = client.mutate(new_mutation_context(), transfer(from, to, "stone", 1)).await;
            }
        };
        let writers = async { tokio::join!(carry(there, "a", "b"), carry(back, "b", "a")) };
        let mut messages = 0;
        let reading = async {
            loop {
                reader.next().await;
                messages += 1;
                let held: u32 = reader
                    .replicas
                    .iter()
                    .flatten()
                    .flat_map(|replica| replica.contents.stacks())
                    .map(|(_, stack)| stack.count.get())
                    .sum();
                assert_eq!(held, 64, "half a transfer was seen");
            }
        };
        tokio::select! {
            _ = writers => {}
            () = reading => unreachable!(),
        }
        assert!(messages > 5, "{messages} messages");
        let (a, b) = (server.get("a").await, server.get("b").await);
        reader.read_until(0, a.version.as_ref().unwrap().revision).await;
        reader.read_until(1, b.version.as_ref().unwrap().revision).await;
        reader.assert_is_at(0, &a);
        reader.assert_is_at(1, &b);
    }
}

#[tokio::test]
async fn a_heartbeat_contains_the_current_versions() {
    let server = TestServer::start(SyncSettings { heartbeat: Duration::from_millis(40), ..immediate() }).await;
    server.create("a", "chest", &[(0, "stone", 5)]).await;
    server.create("b", "chest", &[]).await;
    let mut reader = server.subscribe(&[("a", None), ("b", None)]).await;
    reader.next().await;
    for round in 0..2 {
        let message = reader.next().await;
        assert!(message.changes.is_empty() && !message.caught_up, "{message:?}");
        let (a, b) = (server.version("a").await, server.version("b").await);
        let mark = |watch, version: v1::InventoryVersion| {
            let v1::InventoryVersion { epoch, revision, digest, .. } = version;
            v1::Mark { watch, epoch, revision, digest }
        };
        assert_eq!(message.marks, [mark(0, a), mark(1, b)], "round {round}");
        server.mutate(drop("a", 0, Some(1))).await.unwrap();
        assert_eq!(only_change(&reader.next().await).1.advance, 1);
    }
}

#[tokio::test]
async fn changes_within_a_window_are_sent_as_one_frame() {
    let windows = Windows { news: Duration::from_millis(300), ..Windows::NONE };
    let server = TestServer::start(SyncSettings { windows, ..SyncSettings::default() }).await;
    server.create("a", "chest", &[(0, "stone", 64)]).await;
    let mut reader = server.subscribe(&[("a", None)]).await;
    reader.next().await;
    for _ in 0..20 {
        server.mutate(drop("a", 0, Some(1))).await.unwrap();
    }
    let message = reader.next().await;
    assert_eq!((only_change(&message).1.advance, reader.revision(0)), (20, 21));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_receives_few_conflated_frames_and_converges() {
    const COMMITS: u64 = 600;
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[]).await;
    // This window limits the bytes that the transport accepts ahead of the reader to about as many frames of 1 KiB.
    let channel =
        Endpoint::from_shared(server.running.uri()).unwrap().initial_stream_window_size(65_535).connect_lazy();
    let inventories = vec![v1::Watch { inventory_id: "a".into(), ..v1::Watch::default() }];
    let request = v1::SubscribeInventoryRequest { inventories, ..v1::SubscribeInventoryRequest::default() };
    let stream = InventoryServiceClient::new(channel).subscribe_inventory(request).await.unwrap().into_inner();
    let mut reader = Subscriber::new(stream, 1);
    reader.next().await;
    for n in 0..COMMITS {
        let attributes = (0..1_024).map(|at| (n + at) as u8).collect();
        let stack = v1::Stack { attributes, ..stack("diamond_axe", 1) };
        server.mutate(set("a", (n % 8) as u32, Some(stack))).await.unwrap();
    }
    let (mut frames, mut longest) = (0, 0);
    while reader.revision(0) < 1 + COMMITS {
        let message = reader.next().await;
        frames += 1;
        longest = longest.max(only_change(&message).1.advance);
    }
    reader.assert_is_at(0, &server.get("a").await);
    assert!(frames < 200, "{frames} frames for {COMMITS} commits");
    assert!(longest > COMMITS / 2, "what was missed came as one frame: {longest} revisions");
}

#[tokio::test]
async fn on_shutdown_streams_end_with_unavailable() {
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[]).await;
    let mut reader = server.subscribe(&[("a", None)]).await;
    reader.next().await;
    let TestServer { running, client, .. } = server;
    std::mem::drop(client);
    let (ended, stopped) = tokio::join!(reader.end_or_next(), running.stop());
    assert_eq!(error_of(&ended.unwrap_err()), (Code::Unavailable, "DRAINING".into(), None));
    stopped.unwrap();
}
