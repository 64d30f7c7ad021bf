//! Key rotation while calls and streams are active.

use crate::common::told;
use crate::messages;
use crate::secured::{Secured, bearer, call};
use crate::tokens::{SigningKey, claims};
use slotcast::identity::Verifier;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::{Code, Status};

/// Waits until the server, which checks every second, has succeeded and failed to load this many files.
async fn reloads(verifier: &Verifier, expected: (u64, u64)) {
    let begin = Instant::now();
    while (verifier.reloads().succeeded(), verifier.reloads().failed()) != expected {
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?} instead of {expected:?}", verifier.reloads());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_under_load_without_failed_calls_and_a_removed_key_ends_its_streams() {
    let server = Secured::start().await;
    server.mutate(messages::mutation(messages::create("steve", "steve", &[(0, "apple", 3)]))).await;
    let (old, new) = (server.key.clone(), SigningKey::es256("new"));
    let by_old = bearer(&old.sign(&claims("steve", "player")));
    let mut by_old_stream = server.subscribe(&by_old, "steve").await.unwrap();
    by_old_stream.message().await.unwrap().unwrap();

    // Each call has a new token, so that no cached verification hides an error.
    let (signer, signs) = watch::channel(Some(old.clone()));
    let calls = Arc::new(AtomicU64::new(0));
    let callers = (0..4).map(|_| {
        let (channel, signs, calls) = (server.channel.clone(), signs.clone(), calls.clone());
        tokio::spawn(async move {
            let (path, message) = messages::get("steve");
            loop {
                let Some(key) = signs.borrow().clone() else { return Ok::<(), Status>(()) };
                let number = calls.fetch_add(1, Ordering::Relaxed);
                let shown = bearer(&key.sign(&claims(&format!("lobby-{number}"), "service")));
                call(&channel, &shown, &path, &message).await?;
            }
        })
    });
    let callers: Vec<_> = callers.collect();

    server.login.publish(&[&old, &new]);
    reloads(&server.verifier, (1, 0)).await;
    server.login.write("{\"keys\": [");
    reloads(&server.verifier, (1, 1)).await;
    signer.send_replace(Some(new.clone()));
    let by_new = bearer(&new.sign(&claims("steve", "player")));
    let mut by_new_stream = server.subscribe(&by_new, "steve").await.unwrap();
    by_new_stream.message().await.unwrap().unwrap();
    // All tokens of the old key have been used.
    let before = calls.load(Ordering::Relaxed);
    while calls.load(Ordering::Relaxed) < before + 50 {
        tokio::task::yield_now().await;
    }
    server.login.publish(&[&new]);
    reloads(&server.verifier, (2, 1)).await;
    let removed = Instant::now();
    let mut ended = None;
    while ended.is_none() {
        let message = tokio::time::timeout(Duration::from_secs(5), by_old_stream.message()).await;
        ended = message.expect("the stream of the removed key ends").err();
    }
    let ended = ended.unwrap();
    println!("the stream of the removed key ended {:?} after the reload", removed.elapsed());
    assert!(removed.elapsed() < Duration::from_secs(5));
    assert_eq!((told(&ended).0, told(&ended).1.as_str()), (Code::Unauthenticated, "TOKEN_INVALID"));
    let (path, message) = messages::get("steve");
    let refused = server.call(&by_old, &path, &message).await.unwrap_err();
    assert_eq!(told(&refused).1, "TOKEN_INVALID");

    signer.send_replace(None);
    for caller in callers {
        caller.await.unwrap().expect("no call fails");
    }
    println!("{} calls meanwhile, none failed", calls.load(Ordering::Relaxed));
    server.mutate_by(&new, messages::mutation(crate::common::add("steve", "dirt", 1))).await;
    by_new_stream.message().await.unwrap().expect("the stream of the new key goes on");
}
