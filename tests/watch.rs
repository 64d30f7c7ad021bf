//! `slotcast watch` as a process: inventories that are created, changed and deleted, and a restart of the server.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod process;

use process::ServerProcess;
use slotcast::client::{Client, new_mutation_context};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Time limit for the next line. Only a failing test waits for it.
const LINE_LIMIT: Duration = Duration::from_secs(30);

/// A `slotcast watch` process and the lines that it prints.
struct WatchProcess {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl WatchProcess {
    fn start(uri: &str, ids: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_slotcast"))
            .args(["watch", "--server", uri])
            .args(ids)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { process, lines }
    }

    /// Waits for a line that contains `text`, and returns it. Skips the lines before it.
    fn wait_for(&self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(LINE_LIMIT);
            let line = line.unwrap_or_else(|error| panic!("no line with {text:?}: {error}"));
            println!("{line}");
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for WatchProcess {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn create(id: &str) -> Operation {
    let (inventory_id, layout) = (id.into(), "chest".into());
    Operation::Create(v1::CreateInventory { inventory_id, layout, ..v1::CreateInventory::default() })
}

fn delete(id: &str) -> Operation {
    Operation::Delete(v1::DeleteInventory { inventory_id: id.into() })
}

fn add(id: &str) -> Operation {
    let stack = Some(v1::Stack { item: "coal".into(), count: 1, ..v1::Stack::default() });
    Operation::Add(v1::AddItem { inventory_id: id.into(), stack, allow_partial: false })
}

async fn mutate(uri: &str, operation: Operation) {
    Client::new(uri, "test").unwrap().mutate(new_mutation_context(), operation).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_reconnects_after_a_restart_and_shows_an_inventory_that_is_deleted_and_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &[]);
    let uri = server.uri.clone();
    for id in ["bag", "chest"] {
        mutate(&uri, create(id)).await;
    }
    let watch = WatchProcess::start(&uri, &["bag", "chest"]);
    let first = watch.wait_for("bag r1");
    assert!(first.contains("chest r1"), "{first}");
    mutate(&uri, delete("chest")).await;
    watch.wait_for("chest is absent");
    assert!(server.terminate().success());
    let _server = ServerProcess::restart_at(&uri, folder.path());
    watch.wait_for("chest is absent");
    mutate(&uri, add("bag")).await;
    watch.wait_for("bag r2: 0=coal*1");
    mutate(&uri, create("chest")).await;
    watch.wait_for("chest r1");
    mutate(&uri, add("chest")).await;
    watch.wait_for("chest r2: 0=coal*1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_can_start_before_its_inventories_exist() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(folder.path(), &[]);
    let watch = WatchProcess::start(&server.uri, &["bag", "chest"]);
    let first = watch.wait_for("bag is absent");
    assert!(first.contains("chest is absent"), "{first}");
    mutate(&server.uri, create("chest")).await;
    watch.wait_for("chest r1");
    mutate(&server.uri, create("bag")).await;
    watch.wait_for("bag r1");
}
