//! A flood of invalid tokens from one address.
//!
//! `cargo test --test security -- --nocapture flood` prints the latency of other callers meanwhile.

use crate::common::told;
use crate::messages;
use crate::secured::{Secured, bearer, call, connect};
use crate::tokens::{Login, SigningKey, claims};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic_types::StatusExt;

const CALLS: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_invalid_tokens_is_rate_limited_and_known_tokens_of_the_same_address_still_work() {
    let server = Secured::start_with(Login::verifier).await;
    let key = SigningKey::es256("es");
    server.login.publish(&[&server.key, &key]);
    server.verifier.look().await;
    server.verifier.look().await;
    let known = bearer(&key.sign(&claims("lobby", "service")));
    let (path, message) = messages::catalog();
    server.call(&known, &path, &message).await.unwrap();
    println!("calls alone: {}", percentiles(&server, &known).await);

    // The signature has the right length, so verifying it costs as much as verifying a valid one.
    let forged = bearer(&SigningKey::es256("es").sign(&claims("lobby", "admin")));
    let (is_running, reasons_seen) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(BTreeMap::new())));
    let mut floods = Vec::new();
    for _ in 0..16 {
        let channel = connect(&server.running).await;
        let (forged, is_running, reasons_seen) = (forged.clone(), is_running.clone(), reasons_seen.clone());
        floods.push(tokio::spawn(async move {
            let (path, message) = messages::catalog();
            while is_running.load(Ordering::Relaxed) {
                let status = call(&channel, &forged, &path, &message).await.expect_err("a forged token");
                let has_retry_delay = status.get_details_retry_info().is_some();
                assert_eq!(status.code() == Code::ResourceExhausted, has_retry_delay);
                let reason = told(&status).1;
                *reasons_seen.lock().unwrap().entry(reason).or_insert(0_u64) += 1;
            }
        }));
    }
    let rate_limited = || reasons_seen.lock().unwrap().get("RATE_LIMITED").copied().unwrap_or_default();
    let begin = Instant::now();
    while rate_limited() == 0 {
        assert!(begin.elapsed() < Duration::from_secs(30), "the flood is never rate limited");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("calls under the flood: {}", percentiles(&server, &known).await);
    is_running.store(false, Ordering::Relaxed);
    for flood in floods {
        flood.await.unwrap();
    }
    let reasons_seen = reasons_seen.lock().unwrap();
    println!("replies to the flood within {:?}: {reasons_seen:?}", begin.elapsed());
    let reasons: Vec<_> = reasons_seen.keys().map(String::as_str).collect();
    assert_eq!(reasons, ["RATE_LIMITED", "TOKEN_INVALID"]);
}

/// Returns percentiles of the latency of calls, none of which may fail.
async fn percentiles(server: &Secured, shown: &crate::secured::Shown) -> String {
    let (path, message) = messages::catalog();
    let mut latencies = Vec::new();
    for _ in 0..CALLS {
        let begin = Instant::now();
        server.call(shown, &path, &message).await.expect("a known token");
        latencies.push(begin.elapsed());
    }
    latencies.sort_unstable();
    format!("p50 {:?}, p99 {:?}", latencies[CALLS / 2], latencies[CALLS * 99 / 100])
}
