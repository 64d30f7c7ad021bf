//! Many invalid tokens from one address.
//!
//! `cargo test --test security -- --nocapture flood` prints the latency of another caller's calls meanwhile.

use crate::common::error_of;
use crate::messages;
use crate::secured::{SecuredServer, bearer, call, connect};
use crate::tokens::{Login, SigningKey, claims};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic_types::StatusExt;

const CALLS: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_invalid_tokens_is_rejected_unverified_and_verified_callers_of_the_address_are_served() {
    let server = SecuredServer::start_with(Login::verifier).await;
    let key = SigningKey::es256("es");
    server.login.publish(&[&server.key, &key]);
    server.verifier.refresh().await;
    server.verifier.refresh().await;
    let known = bearer(&key.sign(&claims("lobby", "service")));
    let (path, message) = messages::catalog();
    server.call(&known, &path, &message).await.unwrap();
    println!("calls alone: {}", percentiles(&server, &known).await);

    // The signature has the length of a valid one, and costs as much to verify.
    let forged = bearer(&SigningKey::es256("es").sign(&claims("lobby", "admin")));
    let (going, replies_so_far) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(BTreeMap::new())));
    let mut floods = Vec::new();
    for _ in 0..16 {
        let channel = connect(&server.running).await;
        let (forged, going, replies_so_far) = (forged.clone(), going.clone(), replies_so_far.clone());
        floods.push(tokio::spawn(async move {
            let (path, message) = messages::catalog();
            while going.load(Ordering::Relaxed) {
                let status = call(&channel, &forged, &path, &message).await.expect_err("the token is forged");
                let is_asked_to_wait = status.get_details_retry_info().is_some();
                assert_eq!(status.code() == Code::ResourceExhausted, is_asked_to_wait);
                let reason = error_of(&status).1;
                *replies_so_far.lock().unwrap().entry(reason).or_insert(0_u64) += 1;
            }
        }));
    }
    let refused = || replies_so_far.lock().unwrap().get("RATE_LIMITED").copied().unwrap_or_default();
    let begin = Instant::now();
    while refused() == 0 {
        assert!(begin.elapsed() < Duration::from_secs(30), "the flood is never refused");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("calls under the flood: {}", percentiles(&server, &known).await);
    going.store(false, Ordering::Relaxed);
    for flood in floods {
        flood.await.unwrap();
    }
    let replies_so_far = replies_so_far.lock().unwrap();
    println!("the flood was answered within {:?}: {replies_so_far:?}", begin.elapsed());
    let reasons: Vec<_> = replies_so_far.keys().map(String::as_str).collect();
    assert_eq!(reasons, ["RATE_LIMITED", "TOKEN_INVALID"]);
}

/// Measures calls of which none may fail.
async fn percentiles(server: &SecuredServer, credentials: &crate::secured::Credentials) -> String {
    let (path, message) = messages::catalog();
    let mut took = Vec::new();
    for _ in 0..CALLS {
        let begin = Instant::now();
        server.call(credentials, &path, &message).await.expect("the caller is verified");
        took.push(begin.elapsed());
    }
    took.sort_unstable();
    format!("p50 {:?}, p99 {:?}", took[CALLS / 2], took[CALLS * 99 / 100])
}
