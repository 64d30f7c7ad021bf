//! Idempotency keys of callers with a wrong clock, with the real service and store.

use crate::common::{add, error_of, invalid, precondition, with_key};
use slotcast::catalog_file::default_catalog;
use slotcast::client::{Client, new_mutation_context};
use slotcast::server::{RunningServer, ServerSettings};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::wire::v1::MutationContext;
use slotcast::wire::v1::operation::Operation;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

async fn start(folder: &Path) -> (RunningServer, Arc<EmbeddedStore>) {
    let settings = EmbeddedSettings { keys_max: 1_000, ..EmbeddedSettings::default() };
    let store = Arc::new(EmbeddedStore::open(&folder.join("slotcast.db"), settings).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = ServerSettings::default();
    let running = RunningServer::start(listener, store.clone(), Arc::new(default_catalog()), settings).unwrap();
    (running, store)
}

/// Returns a key that is a UUIDv7 of a clock ahead by `ahead_ms`.
fn context_ahead(ahead_ms: u64, number: u32) -> MutationContext {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let random = u128::from(number).to_be_bytes()[6..].try_into().unwrap();
    let key = uuid::Builder::from_unix_timestamp_millis(now.as_millis() as u64 + ahead_ms, &random).into_uuid();
    with_key(&key.to_string())
}

fn create(id: &str) -> Operation {
    crate::common::create_named(id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_59_s_ahead_causes_no_rejections_of_others_and_no_key_runs_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (running, store) = start(folder.path()).await;
    let fast = Client::new(&running.uri(), "fast").unwrap();
    let other = Client::new(&running.uri(), "other").unwrap();
    other.mutate(new_mutation_context(), create("theirs")).await.unwrap();
    fast.mutate(new_mutation_context(), create("fast's")).await.unwrap();
    let first = context_ahead(59_000, 0);
    fast.mutate(first.clone(), add("fast's", "stone", 1)).await.unwrap();
    for round in 0..5 {
        let mut calls = JoinSet::new();
        for number in 0..1_000 {
            let (fast, context) = (fast.clone(), context_ahead(59_000, 1 + round * 1_000 + number));
            // The store remembers the key of a mutation without a change like any other.
            let shift = crate::common::move_item("fast's", 0, 0, None);
            calls.spawn(async move { fast.mutate(context, shift).await });
        }
        while let Some(answered) = calls.join_next().await {
            answered.unwrap().unwrap();
        }
        store.fold().unwrap();
        other.mutate(new_mutation_context(), add("theirs", "stone", 1)).await.unwrap();
        let newcomer = Client::new(&running.uri(), &format!("newcomer-{round}")).unwrap();
        newcomer.mutate(new_mutation_context(), add("theirs", "stone", 1)).await.unwrap();
    }
    let status = fast.mutate(first.clone(), add("fast's", "stone", 1)).await.unwrap_err();
    assert_eq!(error_of(&status), precondition("IDEMPOTENCY_KEY_EXPIRED"));
    let status = fast.mutate(context_ahead(61_000, 9), add("fast's", "stone", 1)).await.unwrap_err();
    assert_eq!(error_of(&status), invalid("IDEMPOTENCY_KEY_FROM_THE_FUTURE", "context.idempotency_key"));
    drop((fast, other, store));
    running.stop().await.unwrap();

    let (running, _store) = start(folder.path()).await;
    let fast = Client::new(&running.uri(), "fast").unwrap();
    let status = fast.mutate(first, add("fast's", "stone", 1)).await.unwrap_err();
    assert_eq!(error_of(&status), precondition("IDEMPOTENCY_KEY_EXPIRED"), "after a restart too");
    let other = Client::new(&running.uri(), "other").unwrap();
    other.mutate(new_mutation_context(), add("theirs", "stone", 1)).await.unwrap();
    running.stop().await.unwrap();
}
