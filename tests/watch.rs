//! `slotcast watch` as a process, over what happens to its inventories and to the service.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod process;

use process::ServerProcess;
use slotcast::client::{Client, fresh_context};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Longer than anything here takes; only a failure waits for it.
const WAIT: Duration = Duration::from_secs(30);

/// The lines that `slotcast watch` prints into a pipe.
struct Watching {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Watching {
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

    /// The next line that tells this; those before it are passed over.
    fn until(&self, told: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(WAIT);
            let line = line.unwrap_or_else(|error| panic!("{told:?} was not told, {error}"));
            println!("{line}");
            if line.contains(told) {
                return line;
            }
        }
    }
}

impl Drop for Watching {
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
    Client::new(uri, "test").unwrap().mutate(fresh_context(), operation).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_goes_on_with_the_bag_over_a_restart_while_the_chest_is_deleted_and_shows_it_when_it_is_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &[]);
    let uri = server.uri.clone();
    for id in ["bag", "chest"] {
        mutate(&uri, create(id)).await;
    }
    let watching = Watching::start(&uri, &["bag", "chest"]);
    let first = watching.until("bag r1");
    assert!(first.contains("chest r1"), "{first}");
    mutate(&uri, delete("chest")).await;
    watching.until("chest is absent");
    assert!(server.terminate().success());
    let _server = ServerProcess::start_in_place_of(&uri, folder.path());
    watching.until("chest is absent");
    mutate(&uri, add("bag")).await;
    watching.until("bag r2: 0=coal*1");
    mutate(&uri, create("chest")).await;
    watching.until("chest r1");
    mutate(&uri, add("chest")).await;
    watching.until("chest r2: 0=coal*1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_begins_before_anything_exists() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(folder.path(), &[]);
    let watching = Watching::start(&server.uri, &["bag", "chest"]);
    let first = watching.until("bag is absent");
    assert!(first.contains("chest is absent"), "{first}");
    mutate(&server.uri, create("chest")).await;
    watching.until("chest r1");
    mutate(&server.uri, create("bag")).await;
    watching.until("bag r1");
}
