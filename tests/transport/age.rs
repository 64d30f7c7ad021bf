//! Connections that reach their maximum age.

use crate::common::{MemoryStore, add, remove};
use crate::support::{client, create, get, settings, start_at};
use slotcast::client::{SessionEvent, SessionOptions, new_mutation_context};
use slotcast::transport::TransportSettings;
use slotcast::wire::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;

const AGE: Duration = Duration::from_millis(300);
const GRACE: Duration = Duration::from_millis(300);

fn short_age() -> TransportSettings {
    TransportSettings { connection_age: Some(AGE), connection_age_grace: GRACE, ..TransportSettings::default() }
}

#[tokio::test]
async fn a_stream_ends_with_unavailable_within_the_grace_period_of_its_connection() {
    let server = start_at("127.0.0.1:0", Arc::<MemoryStore>::default(), settings(short_age())).await;
    let client = client(&server);
    create(&client, "a").await;
    let start = Instant::now();
    let mut ends = Vec::new();
    for _ in 0..8 {
        let inventories = vec![v1::Watch { inventory_id: "a".into(), ..v1::Watch::default() }];
        let request = v1::SubscribeInventoryRequest { inventories, ..v1::SubscribeInventoryRequest::default() };
        let mut stream = client.rpc().subscribe_inventory(request).await.unwrap().into_inner();
        ends.push(async move {
            loop {
                match stream.message().await {
                    Ok(message) => assert!(message.is_some(), "a stream ends with a status only"),
                    Err(status) => return (status.code(), start.elapsed()),
                }
            }
        });
    }
    let ends = futures_util::future::join_all(ends).await;
    for (code, after) in &ends {
        assert_eq!(*code, Code::Unavailable);
        assert!(*after > AGE.mul_f32(0.8) && *after < AGE + GRACE + Duration::from_secs(3), "{after:?}");
    }
    let (first, last) = (ends.iter().map(|end| end.1).min().unwrap(), ends.iter().map(|end| end.1).max().unwrap());
    assert!(last - first > GRACE / 20, "the streams end at different times: {ends:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_reach_their_maximum_age_fail_no_call_and_followers_only_reconnect() {
    let server = start_at("127.0.0.1:0", Arc::<MemoryStore>::default(), settings(short_age())).await;
    let first = client(&server);
    create(&first, "a").await;
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..6)
        .map(|_| {
            let (client, stop, calls) = (client(&server), stop.clone(), calls.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.mutate(new_mutation_context(), add("a", "coal", 1)).await.expect("no call fails");
                    client.mutate(new_mutation_context(), remove("a", "coal", 1)).await.expect("no call fails");
                    calls.fetch_add(2, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut follow = first.follow(vec!["a".into()]);
    while follow.counts().reconnects < 5 {
        follow.next().await.expect("the follower hides the reconnect");
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let last = get(&first, "a").await.unwrap().version.unwrap();
    while follow.replica(0).is_none_or(|replica| replica.contents.revision().0 < last.revision) {
        follow.next().await.unwrap();
    }
    assert_eq!(follow.counts().desyncs, 0);
    assert_eq!(last.revision, 1 + calls.load(Ordering::Relaxed), "each call was applied once");
    assert!(server.transport.connections() <= 16, "old connections are closed: {}", server.transport.connections());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_continues_across_connections_and_reports_only_reconnects() {
    let server = start_at("127.0.0.1:0", Arc::<MemoryStore>::default(), settings(short_age())).await;
    let client = client(&server);
    create(&client, "a").await;
    let catalog = client.catalog().await.unwrap();
    let session = client.session(SessionOptions::new(vec!["a".into()]), catalog).unwrap();
    session.caught_up().await.unwrap();
    let mut applied = 0;
    while session.counts().reconnects < 3 {
        session.apply(add("a", "coal", 1)).unwrap();
        session.apply(remove("a", "coal", 1)).unwrap();
        applied += 2;
        session.settled().await.unwrap();
    }
    let (mut confirmed, mut lost) = (0, 0);
    while confirmed < applied {
        match session.next_event().await.expect("the session continues") {
            SessionEvent::Confirmed { .. } => confirmed += 1,
            SessionEvent::Dropped { events } => lost += events,
            SessionEvent::Connected
            | SessionEvent::Disconnected
            | SessionEvent::Changed { .. }
            | SessionEvent::Corrected { .. } => {}
            bad @ (SessionEvent::Failed { .. }
            | SessionEvent::OutcomeUnknown { .. }
            | SessionEvent::Desync { .. }
            | SessionEvent::Notice(_)
            | SessionEvent::Ended { .. }) => panic!("{bad:?}"),
        }
        if lost > 0 {
            break;
        }
    }
    assert_eq!((session.counts().desyncs, session.pending()), (0, 0));
    let last = get(&client, "a").await.unwrap().version.unwrap();
    assert_eq!(last.revision, 1 + applied, "each change was applied once");
}
