//! Streams of players over real connections.

use crate::common::{add, delete, error_of};
use crate::messages::{create, mutation, subscribe as subscribing, transact};
use crate::secured::{Opened, SecuredServer, bearer, connect, subscribe};
use crate::tokens::{SetClock, claims_but, now_s};
use futures_util::future::join_all;
use serde_json::json;
use slotcast::wire::v1;
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Reads the stream to its end, and returns the messages and the final status.
async fn rest(stream: &mut Opened) -> (Vec<v1::SubscribeInventoryResponse>, Status) {
    let mut messages = Vec::new();
    loop {
        let message =
            tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("the stream ends in time");
        match message {
            Ok(message) => messages.push(message.expect("a stream ends with a status only")),
            Err(status) => return (messages, status),
        }
    }
}

#[tokio::test]
async fn case_41_an_expired_token_ends_its_stream_within_five_seconds() {
    let clock = SetClock::new();
    let server = SecuredServer::start_with(|login| login.verifier_at(&clock)).await;
    server.mutate(mutation(create("steve", "steve", &[(0, "apple", 3)]))).await;
    let token =
        |seconds: u64| bearer(&server.key.sign(&claims_but("steve", "player", json!({ "exp": now_s() + seconds }))));
    let mut short = server.subscribe(&token(100), "steve").await.unwrap();
    let mut long = server.subscribe(&token(1_000), "steve").await.unwrap();
    for stream in [&mut short, &mut long] {
        stream.message().await.unwrap().unwrap();
    }
    clock.move_by(500_000);
    let begin = Instant::now();
    let (messages, status) = rest(&mut short).await;
    println!("the stream ended {:?} after its token", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((messages.len(), error_of(&status)), (0, (Code::Unauthenticated, "TOKEN_EXPIRED".into(), None)));
    server.mutate(mutation(add("steve", "dirt", 1))).await;
    long.message().await.unwrap().expect("the other one goes on");
}

fn absent(watch: u32) -> v1::InventoryChange {
    v1::InventoryChange { watch, absent: true, ..v1::InventoryChange::default() }
}

async fn next(stream: &mut Opened) -> v1::SubscribeInventoryResponse {
    let message = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("a message in time");
    message.unwrap().expect("the stream goes on")
}

#[tokio::test]
async fn case_42_an_inventory_given_to_another_player_is_absent_until_it_is_returned() {
    let server = SecuredServer::start().await;
    let (steve, lobby) = (server.credentials("steve", "player"), server.credentials("lobby", "service"));
    server.mutate(mutation(create("bag", "steve", &[]))).await;
    for (id, immediate) in [("a", true), ("b", false)] {
        server.mutate(mutation(create(id, "steve", &[(0, "apple", 3)]))).await;
        let mut stream = subscribe(&server.channel, &steve, &["bag", id]).await.unwrap();
        let mut trusted = server.subscribe(&lobby, id).await.unwrap();
        for stream in [&mut stream, &mut trusted] {
            next(stream).await;
        }
        let anew = create(id, "alex", &[(0, "diamond_sword", 1)]);
        if immediate {
            server.mutate(transact(vec![delete(id), anew])).await;
        } else {
            server.mutate(mutation(delete(id))).await;
            server.mutate(mutation(anew)).await;
        }
        let message = next(&mut stream).await;
        assert_eq!(message, v1::SubscribeInventoryResponse { changes: vec![absent(1)], ..Default::default() });
        server.mutate(mutation(add(id, "diamond_axe", 1))).await;
        while !next(&mut trusted).await.changes.iter().any(|change| !change.absent) {}
        // The next message is about the bag: the change of the other inventory was not reported.
        server.mutate(mutation(add("bag", "dirt", 1))).await;
        let message = next(&mut stream).await;
        let kinds: Vec<_> = message.notices.iter().map(|notice| (notice.watch, notice.kind())).collect();
        assert_eq!((message.changes.len(), message.changes[0].watch), (1, 0));
        assert_eq!((kinds, message.notices_dropped), (vec![(0, v1::ChangeKind::Add)], 0));
        server.mutate(transact(vec![delete(id), create(id, "steve", &[(7, "apple", 1)])])).await;
        let message = next(&mut stream).await;
        let change = &message.changes[0];
        assert_eq!((message.changes.len(), change.watch, change.slots.as_slice()), (1, 1, &[7][..]));
        assert_eq!(change.full.as_ref().unwrap().reason(), v1::FullReason::Initial);
        assert!(message.notices.iter().all(|notice| notice.revision == 1), "only how it came to be: {message:?}");
    }
}

#[tokio::test]
async fn unreadable_and_nonexistent_inventories_have_identical_first_messages() {
    let server = SecuredServer::start().await;
    server.mutate(mutation(create("alex", "alex", &[(0, "apple", 3)]))).await;
    server.mutate(mutation(create("chest", "", &[(0, "apple", 3)]))).await;
    server.mutate(mutation(create("gone", "steve", &[(0, "apple", 3)]))).await;
    server.mutate(mutation(delete("gone"))).await;
    let steve = server.credentials("steve", "player");
    for id in ["alex", "chest", "gone", "nowhere"] {
        let (path, message) = subscribing(&[id]);
        let answer = server.call(&steve, &path, &message).await.unwrap();
        let expected =
            v1::SubscribeInventoryResponse { changes: vec![absent(0)], caught_up: true, ..Default::default() };
        assert_eq!(answer, prost::Message::encode_to_vec(&expected), "{id}");
    }
}

#[tokio::test]
async fn an_inventory_recreated_for_the_same_player_is_followed_again() {
    let server = SecuredServer::start().await;
    server.mutate(mutation(create("steve", "steve", &[(0, "apple", 3)]))).await;
    let mut stream = server.subscribe(&server.credentials("steve", "player"), "steve").await.unwrap();
    stream.message().await.unwrap().unwrap();
    server.mutate(mutation(delete("steve"))).await;
    server.mutate(mutation(create("steve", "steve", &[(0, "dirt", 1)]))).await;
    let mut items = 0;
    while items == 0 {
        let message = stream.message().await.unwrap().unwrap();
        items = message.changes.iter().filter(|change| !change.absent).count();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_40_ten_thousand_streams_of_one_player_are_rejected_without_affecting_others() {
    const ATTEMPTS: usize = 10_000;
    let server = SecuredServer::start().await;
    for name in ["steve", "alex"] {
        server.mutate(mutation(create(name, name, &[]))).await;
    }
    let mut alex = server.subscribe(&server.credentials("alex", "player"), "alex").await.unwrap();
    alex.message().await.unwrap().unwrap();
    let steve = server.credentials("steve", "player");
    let channels = join_all((0..4).map(|_| connect(&server.running))).await;
    let hoarders = channels.into_iter().map(|channel| {
        let steve = steve.clone();
        tokio::spawn(async move {
            let (mut open, mut refused) = (Vec::new(), 0);
            for _ in 0..ATTEMPTS / 4 / 250 {
                for opened in join_all((0..250).map(|_| subscribe(&channel, &steve, &["steve"]))).await {
                    match opened {
                        Ok(stream) => open.push(stream),
                        Err(status) => {
                            assert_eq!(
                                (error_of(&status).0, error_of(&status).1.as_str()),
                                (Code::ResourceExhausted, "TOO_MANY_STREAMS")
                            );
                            refused += 1;
                        }
                    }
                }
            }
            (open, refused)
        })
    });
    let begin = Instant::now();
    let hoarders: Vec<_> = hoarders.collect();
    let (mut slowest, mut frames) = (Duration::ZERO, 0);
    while !hoarders.iter().all(tokio::task::JoinHandle::is_finished) {
        let begin = Instant::now();
        server
            .mutate(mutation(crate::common::set(
                "alex",
                frames % 36,
                Some(crate::common::stack("dirt", frames / 36 + 1)),
            )))
            .await;
        alex.message().await.unwrap().unwrap();
        (slowest, frames) = (slowest.max(begin.elapsed()), frames + 1);
    }
    let took = begin.elapsed();
    let (mut open, mut refused) = (0, 0);
    let mut kept = Vec::new();
    for hoarder in hoarders {
        let (streams, refusals) = hoarder.await.unwrap();
        (open, refused) = (open + streams.len(), refused + refusals);
        kept.push(streams);
    }
    println!(
        "{open} open, {refused} refused in {took:?}; meanwhile {frames} changes took at most {slowest:?} to another player"
    );
    assert_eq!((open, refused), (16, ATTEMPTS - 16));
    assert!(frames > 0 && slowest < Duration::from_secs(2), "{slowest:?}");
}
