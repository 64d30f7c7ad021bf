//! Streams of players over real connections.

use crate::common::{add, delete, told};
use crate::messages::{create, mutation, transact};
use crate::secured::{Opened, Secured, bearer, connect, subscribe};
use crate::tokens::{SetClock, claims_but, now_s};
use futures_util::future::join_all;
use serde_json::json;
use slotcast::grpc::v1;
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Everything until the stream ends, and how.
async fn rest(stream: &mut Opened) -> (Vec<v1::SubscribeInventoryResponse>, Status) {
    let mut messages = Vec::new();
    loop {
        let message = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("it ends");
        match message {
            Ok(message) => messages.push(message.expect("a stream ends with a status only")),
            Err(status) => return (messages, status),
        }
    }
}

#[tokio::test]
async fn case_41_a_token_that_expires_in_mid_stream_ends_it_within_five_seconds() {
    let clock = SetClock::new();
    let server = Secured::start_with(|login| login.verifier_at(&clock)).await;
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
    assert_eq!((messages.len(), told(&status)), (0, (Code::Unauthenticated, "TOKEN_EXPIRED".into(), None)));
    server.mutate(mutation(add("steve", "dirt", 1))).await;
    long.message().await.unwrap().expect("the other one goes on");
}

#[tokio::test]
async fn case_42_nothing_more_leaks_of_an_inventory_that_is_anothers_now() {
    let server = Secured::start().await;
    let steve = server.shown("steve", "player");
    let lobby = server.shown("lobby", "service");
    for (id, at_once) in [("a", true), ("b", false)] {
        server.mutate(mutation(create(id, "steve", &[(0, "apple", 3)]))).await;
        let mut stream = server.subscribe(&steve, id).await.unwrap();
        let mut trusted = server.subscribe(&lobby, id).await.unwrap();
        for stream in [&mut stream, &mut trusted] {
            stream.message().await.unwrap().unwrap();
        }
        let anew = create(id, "alex", &[(0, "diamond_sword", 1)]);
        if at_once {
            server.mutate(transact(vec![delete(id), anew])).await;
        } else {
            server.mutate(mutation(delete(id))).await;
            server.mutate(mutation(anew)).await;
        }
        server.mutate(mutation(add(id, "diamond_axe", 1))).await;
        let (messages, status) = rest(&mut stream).await;
        assert_eq!(told(&status), (Code::PermissionDenied, "NOT_YOURS".into(), None));
        for change in messages.iter().flat_map(|message| &message.changes) {
            assert!(change.deleted, "nothing but that its own is gone: {change:?}");
        }
        assert!(
            messages.iter().all(|message| message.notices.iter().all(|notice| notice.revision <= 2)),
            "{messages:?}"
        );
        let mut changes = Vec::new();
        while !changes.iter().any(|change: &v1::InventoryChange| !change.deleted) {
            changes.extend(trusted.message().await.unwrap().expect("the service's goes on").changes);
        }
        let again = server.subscribe(&steve, id).await.unwrap_err();
        assert_eq!(told(&again).1, "NOT_YOURS");
    }
}

#[tokio::test]
async fn an_inventory_made_anew_for_the_same_player_is_followed_on() {
    let server = Secured::start().await;
    server.mutate(mutation(create("steve", "steve", &[(0, "apple", 3)]))).await;
    let mut stream = server.subscribe(&server.shown("steve", "player"), "steve").await.unwrap();
    stream.message().await.unwrap().unwrap();
    server.mutate(mutation(delete("steve"))).await;
    server.mutate(mutation(create("steve", "steve", &[(0, "dirt", 1)]))).await;
    let mut items = 0;
    while items == 0 {
        let message = stream.message().await.unwrap().unwrap();
        items = message.changes.iter().filter(|change| !change.deleted).count();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_40_ten_thousand_streams_by_one_player_are_refused_and_others_unharmed() {
    const ATTEMPTS: usize = 10_000;
    let server = Secured::start().await;
    for name in ["steve", "alex"] {
        server.mutate(mutation(create(name, name, &[]))).await;
    }
    let mut alex = server.subscribe(&server.shown("alex", "player"), "alex").await.unwrap();
    alex.message().await.unwrap().unwrap();
    let steve = server.shown("steve", "player");
    let channels = join_all((0..4).map(|_| connect(&server.running))).await;
    let hoarders = channels.into_iter().map(|channel| {
        let steve = steve.clone();
        tokio::spawn(async move {
            let (mut open, mut refused) = (Vec::new(), 0);
            for _ in 0..ATTEMPTS / 4 / 250 {
                for opened in join_all((0..250).map(|_| subscribe(&channel, &steve, "steve"))).await {
                    match opened {
                        Ok(stream) => open.push(stream),
                        Err(status) => {
                            assert_eq!(
                                (told(&status).0, told(&status).1.as_str()),
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
