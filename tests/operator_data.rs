//! The operator's commands on data, as processes: backup, restore, export, import, fsck; and a disk that is really full.
//!
//! `SLOTCAST_INVENTORIES` makes the store that is backed up under load larger (2,000 by default), to measure.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod process;
mod store_support;

use process::ServerProcess;
use serde_json::Value;
use slotcast::client::{Client, fresh_context};
use slotcast::grpc::v1;
use slotcast::grpc::v1::operation::Operation;
use slotcast::store::Store;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use store_support::{History, Place};
use tonic::Code;

fn slotcast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    command.args(arguments);
    command
}

/// Runs a command over a store to its end.
fn run(command: &str, data: &Path, arguments: &[&str]) -> Output {
    slotcast(&[command, "--data"]).arg(data).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn ran(command: &str, data: &Path, arguments: &[&str]) -> String {
    let output = run(command, data, arguments);
    assert!(output.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that fails says.
fn refused(command: &str, data: &Path, arguments: &[&str]) -> String {
    let output = run(command, data, arguments);
    assert_eq!(output.status.code(), Some(1), "{command} {arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn fsck(data: &Path) -> Value {
    let found: Value = serde_json::from_str(&ran("fsck", data, &["--json"])).unwrap();
    assert_eq!(found["ok"], true, "{found}");
    found
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn create(id: &str, stacks: &[(u32, &str, u32)]) -> Operation {
    let stacks = stacks.iter().map(|(slot, item, count)| v1::SlotStack {
        slot: *slot,
        stack: Some(v1::Stack { item: (*item).into(), count: *count, ..v1::Stack::default() }),
    });
    let (inventory_id, layout) = (id.to_owned(), "chest".to_owned());
    Operation::Create(v1::CreateInventory { inventory_id, layout, stacks: stacks.collect(), ..Default::default() })
}

fn add(id: &str, item: &str, count: u32, attributes: Vec<u8>) -> Operation {
    let stack = v1::Stack { item: item.into(), count, attributes, ..v1::Stack::default() };
    Operation::Add(v1::AddItem { inventory_id: id.into(), stack: Some(stack), allow_partial: false })
}

fn transfer(from: &str, to: &str, count: u32) -> Operation {
    let what = v1::ItemQuantity { item: "stone".into(), count, ..v1::ItemQuantity::default() };
    Operation::Transfer(v1::TransferItem {
        from_inventory_id: from.into(),
        to_inventory_id: to.into(),
        what: Some(v1::transfer_item::What::Item(what)),
        to_slot: None,
        allow_partial: false,
    })
}

async fn get(client: &Client, id: &str) -> v1::Inventory {
    let request = v1::GetInventoryRequest { inventory_id: id.into() };
    client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap()
}

async fn held(client: &Client, id: &str) -> u32 {
    get(client, id).await.stacks.into_iter().filter_map(|slot| slot.stack).map(|stack| stack.count).sum()
}

fn export_lines(inventories: usize) -> String {
    let mut lines = format!(r#"{{"slotcast_export":1,"catalog":"","exported_unix_ms":0,"inventories":{inventories}}}"#);
    let stacks: Vec<_> = (0..20).map(|slot| format!(r#"{{"slot":{slot},"item":"dirt","count":7}}"#)).collect();
    for number in 0..inventories {
        write!(lines, "\n{{\"id\":\"cold-{number}\",\"layout\":\"player\",\"stacks\":[{}]}}", stacks.join(","))
            .unwrap();
    }
    lines
}

const WRITERS: usize = 6;
const STONES: u32 = 10 * 64;

/// What the writers of a test know.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    /// Apples that each has been told are its own.
    apples: [AtomicU32; WRITERS],
    waits: Mutex<Vec<Duration>>,
}

impl Load {
    /// Stones wander between the writers' chests; beside that each gets an apple at a time.
    async fn write(self: Arc<Self>, uri: String, writer: usize) {
        let client = Client::new(&uri, "operator-test").unwrap();
        let mine = format!("chest-{writer}");
        while !self.stop.load(Ordering::SeqCst) {
            let began = Instant::now();
            client.mutate(fresh_context(), add(&format!("apples-{writer}"), "apple", 1, vec![])).await.unwrap();
            self.waits.lock().unwrap().push(began.elapsed());
            self.apples[writer].fetch_add(1, Ordering::SeqCst);
            let other = format!("chest-{}", (writer + 1 + fastrand::usize(..WRITERS - 1)) % WRITERS);
            let moved = client.mutate(fresh_context(), transfer(&mine, &other, fastrand::u32(1..9))).await;
            assert!(moved.as_ref().err().is_none_or(|status| status.code() == Code::FailedPrecondition), "{moved:?}");
        }
    }

    fn acknowledged(&self) -> [u32; WRITERS] {
        std::array::from_fn(|writer| self.apples[writer].load(Ordering::SeqCst))
    }

    fn percentiles(&self) -> (usize, Duration, Duration, Duration) {
        let mut waits = std::mem::take(&mut *self.waits.lock().unwrap());
        waits.sort_unstable();
        let at = |percent: usize| waits[(waits.len() - 1) * percent / 100];
        (waits.len(), at(50), at(99), at(100))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_holds_all_that_was_acknowledged_before_and_conserves() {
    let inventories = std::env::var("SLOTCAST_INVENTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let folder = tempfile::tempdir().unwrap();
    let (data, lines) = (folder.path().join("data"), folder.path().join("cold.jsonl"));
    std::fs::write(&lines, export_lines(inventories)).unwrap();
    ran("import", &data, &[text(&lines)]);
    let server = ServerProcess::start(&data, &[]);
    let client = Client::new(&server.uri, "operator-test").unwrap();
    for writer in 0..WRITERS {
        let stones: Vec<_> = (0..10).map(|slot| (slot, "stone", 64)).collect();
        client.mutate(fresh_context(), create(&format!("chest-{writer}"), &stones)).await.unwrap();
        client.mutate(fresh_context(), create(&format!("apples-{writer}"), &[])).await.unwrap();
    }
    let remembered = fresh_context();
    client.mutate(remembered.clone(), add("chest-0", "coal", 3, vec![])).await.unwrap();

    let load = Arc::new(Load::default());
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(load.clone().write(server.uri.clone(), writer))).collect();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let quiet = load.percentiles();
    let (before, began) = (load.acknowledged(), Instant::now());
    let copy = folder.path().join("copy.db");
    let (from, to) = (data.clone(), copy.clone());
    let said = tokio::task::spawn_blocking(move || ran("backup", &from, &[text(&to)])).await.unwrap();
    let (took, after, busy) = (began.elapsed(), load.acknowledged(), load.percentiles());
    // fsck on the running store, too.
    fsck(&data);
    let checking = load.percentiles();
    load.stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    println!("{said}in {took:?}; calls, p50, p99, max: before {quiet:?}, during {busy:?}, during fsck {checking:?}");

    let found = fsck(&copy);
    let again = run("backup", &data, &[text(&copy)]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("copy.db already exists"), "{again:?}");
    let restored = folder.path().join("restored");
    ran("restore", &restored, &[text(&copy)]);
    assert_eq!(fsck(&restored)["items"], found["items"]);
    let elsewhere = ServerProcess::start(&restored, &[]);
    let client = Client::new(&elsewhere.uri, "operator-test").unwrap();
    let (mut stones, mut coal) = (0, 0);
    for writer in 0..WRITERS {
        let apples = held(&client, &format!("apples-{writer}")).await;
        assert!(before[writer] <= apples && apples <= after[writer] + 1, "{before:?} {apples} {after:?}");
        for stack in get(&client, &format!("chest-{writer}")).await.stacks.into_iter().filter_map(|slot| slot.stack) {
            *if stack.item == "stone" { &mut stones } else { &mut coal } += stack.count;
        }
    }
    assert_eq!((stones, coal), (WRITERS as u32 * STONES, 3));
    let retried = client.mutate(remembered, add("chest-0", "coal", 3, vec![])).await.unwrap();
    assert!(retried.replayed, "a retry of what is in the backup is answered from it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_35_after_a_restore_a_stream_that_resumes_gets_everything_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (data, copy) = (folder.path().join("data"), folder.path().join("copy.db"));
    let mut server = ServerProcess::start(&data, &[]);
    let client = Client::new(&server.uri, "operator-test").unwrap();
    client.mutate(fresh_context(), create("a", &[(0, "stone", 5)])).await.unwrap();
    let early = fresh_context();
    client.mutate(early.clone(), add("a", "coal", 1, vec![])).await.unwrap();
    ran("backup", &data, &[text(&copy)]);
    let late = fresh_context();
    let after = client.mutate(late.clone(), add("a", "coal", 1, vec![])).await.unwrap().inventories.remove(0);
    assert!(refused("restore", &data, &[text(&copy), "--force"]).contains("already open in another process"));
    server.kill();
    assert!(refused("restore", &data, &[text(&copy)]).contains("already exists"));
    let said = ran("restore", &data, &[text(&copy), "--force"]);
    let kept = said.lines().next().unwrap().strip_prefix("the store that was there is now ").unwrap();
    assert_eq!(fsck(Path::new(kept))["items"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>(), 7);

    let server = ServerProcess::start(&data, &[]);
    let client = Client::new(&server.uri, "operator-test").unwrap();
    let resume = Some(v1::Cursor { epoch: after.epoch, revision: after.revision });
    let watch = v1::Watch { inventory_id: "a".into(), resume };
    let request = v1::SubscribeInventoryRequest { inventories: vec![watch], ..Default::default() };
    let mut stream = client.rpc().subscribe_inventory(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let full = first.changes[0].full.as_ref().unwrap();
    assert_eq!((full.reason(), full.revision), (v1::FullReason::EpochChanged, 1));
    assert_ne!(full.epoch, after.epoch);
    assert!(client.mutate(early, add("a", "coal", 1, vec![])).await.unwrap().replayed);
    assert_eq!(held(&client, "a").await, 6);
    let again = client.mutate(late, add("a", "coal", 1, vec![])).await.unwrap();
    assert!(!again.replayed, "its effect has gone with the restore");
    assert_eq!(held(&client, "a").await, 7);
}

/// The lines of an export but for what an import makes anew.
fn content(export: &str) -> Vec<Value> {
    let line = |line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for made_anew in ["epoch", "revision", "exported_unix_ms"] {
            line.as_object_mut().unwrap().remove(made_anew);
        }
        line
    };
    export.lines().map(line).collect()
}

#[test]
fn what_is_exported_imported_and_exported_again_is_the_same() {
    let place = Place::new();
    let mut history = History::new(77, 40);
    let store = place.open();
    for number in 0..150 {
        store.commit(&history.batch()).unwrap();
        if number == 90 {
            store.fold().unwrap();
        }
    }
    // The service may run.
    let (data, other) = (place.folder.path().to_owned(), place.folder.path().join("other"));
    let first = ran("export", &data, &[]);
    assert_eq!(content(&first).len(), history.model.inventories.len() + 1);
    let file = place.folder.path().join("export.jsonl");
    ran("export", &data, &[text(&file)]);
    assert_eq!(content(&std::fs::read_to_string(&file).unwrap()), content(&first));
    assert!(refused("export", &data, &[text(&file)]).contains("it is there already"));
    let tried = ran("import", &other, &[text(&file), "--oversized", "--dry-run"]);
    assert!(tried.contains("nothing was written") && !other.exists(), "{tried}");
    ran("import", &other, &[text(&file), "--oversized"]);
    assert_eq!(content(&ran("export", &other, &["-"])), content(&first));
    assert_eq!(fsck(&other)["items"], fsck(&data)["items"]);
    let epochs = |export: &str| -> Vec<u64> {
        let line = |line| serde_json::from_str::<Value>(line).unwrap()["epoch"].as_u64();
        export.lines().filter_map(line).collect()
    };
    let (was, is) = (epochs(&first), epochs(&ran("export", &other, &[])));
    assert!(was.len() == is.len() && was.iter().zip(&is).all(|(was, is)| was != is));

    let lines = first.lines().count() - 1;
    assert!(refused("import", &other, &[text(&file), "--oversized"]).contains("add to them with --merge"));
    let conflicts = refused("import", &other, &[text(&file), "--oversized", "--merge"]);
    assert!(conflicts.contains(&format!("problems: {lines}")), "{conflicts}");
    assert!(conflicts.contains("line 2: inventory") && conflicts.contains("is in the store already"), "{conflicts}");
}

#[test]
fn an_import_tells_every_bad_line_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("bad.jsonl"));
    std::fs::write(&file, export_lines(3)).unwrap();
    ran("import", &data, &[text(&file)]);
    let before = ran("export", &data, &[]);
    let bad = [
        r#"{"slotcast_export":1,"catalog":"","exported_unix_ms":0,"inventories":7}"#,
        r#"{"id":"good","layout":"chest","stacks":[]}"#,
        r#"{"id":"large","layout":"chest","stacks":[{"slot":0,"item":"stone","count":65}]}"#,
        "no json",
        r#"{"id":"good","layout":"chest","stacks":[]}"#,
        r#"{"id":"cold-1","layout":"chest","stacks":[]}"#,
        r#"{"id":"far","layout":"chest","stacks":[{"slot":27,"item":"stone","count":1}]}"#,
    ];
    std::fs::write(&file, bad.join("\n")).unwrap();
    let said = refused("import", &data, &[text(&file), "--merge"]);
    for wanted in [
        "nothing was imported; problems: 6",
        "line 1: it tells of 7 inventories, but 6 follow",
        "line 3: slot 0: 65 of \"stone\" are more than its max_stack of 64",
        "line 4: it is no inventory",
        "line 5: inventory \"good\" stands in line 2 already",
        "line 6: inventory \"cold-1\" is in the store already",
        "line 7: slot 27: its layout has 27 slots",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert_eq!(content(&ran("export", &data, &[])), content(&before));
    std::fs::write(&file, "").unwrap();
    assert!(refused("import", &data, &[text(&file), "--merge"]).contains("the file is empty"));
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().flatten().map(|file| file.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn fsck_ends_with_status_1_and_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("some.jsonl"));
    std::fs::write(&file, export_lines(3)).unwrap();
    ran("import", &data, &[text(&file)]);
    let sound = ran("fsck", &data, &[]);
    assert!(sound.contains("is sound: 3 inventories, 60 stacks, 420 items"), "{sound}");
    let connection = rusqlite::Connection::open(data.join("slotcast.db")).unwrap();
    connection.execute("UPDATE inventories SET owner = 'eve' WHERE id <> 'cold-1'", []).unwrap();
    drop(connection);
    let output = run("fsck", &data.join("slotcast.db"), &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["inventory \"cold-0\": its checksum does not match", "inventory \"cold-2\": its checksum does not match"]
    );
    assert!(String::from_utf8(output.stderr).unwrap().contains("has 2 problems"));
    let output = run("fsck", &folder.path().join("nowhere"), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["ok"], false);
    assert!(refused("export", &data, &["-"]).contains("`slotcast fsck` tells all that is wrong with it"));
    let rest = ran("export", &data, &["--skip-damaged"]);
    assert!(rest.lines().count() == 2 && rest.contains("cold-1"), "{rest}");
}

/// A small file system of its own, gone when this is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None where that is not allowed.
    fn mount(kib: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(folder))
    }

    fn resize(&self, kib: u32) {
        let size = format!("remount,size={kib}k");
        assert!(Command::new("mount").args(["-o", &size]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The folder itself is removed afterwards.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_44_a_disk_that_is_really_full_refuses_keeps_reads_and_recovers() {
    let Some(disk) = SmallDisk::mount(2_048) else {
        println!("skipped: a file system of its own cannot be mounted here");
        return;
    };
    let server = ServerProcess::start(disk.0.path(), &[]);
    let client = Client::new(&server.uri, "operator-test").unwrap();
    let (mut chests, mut full) = (0_u32, None);
    for number in 0..4_000_u32 {
        let id = format!("chest-{number}");
        let stack =
            v1::Stack { item: "stone".into(), count: 1, attributes: vec![number as u8; 1_024], ..Default::default() };
        let stacks = (0..8).map(|slot| v1::SlotStack { slot, stack: Some(stack.clone()) }).collect();
        let create = v1::CreateInventory { inventory_id: id, layout: "chest".into(), stacks, ..Default::default() };
        let (context, create) = (fresh_context(), Operation::Create(create));
        match client.mutate(context.clone(), create.clone()).await {
            Ok(_) => chests += 1,
            Err(status) => {
                full = Some((status, context, create));
                break;
            }
        }
    }
    let (status, context, create) = full.expect("it is full at last");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(chests > 10, "{chests}");
    for number in [0, chests - 1] {
        assert_eq!(held(&client, &format!("chest-{number}")).await, 8, "reads go on");
    }
    let again = client.mutate(context.clone(), create.clone()).await.unwrap_err();
    assert_eq!(again.code(), Code::ResourceExhausted, "{again:?}");

    disk.resize(32_768);
    let made = client.mutate(context, create).await.expect("there is room again");
    assert!(!made.replayed);
    assert_eq!(held(&client, &format!("chest-{chests}")).await, 8);
    drop(server);
    let found = fsck(disk.0.path());
    assert_eq!(found["inventories"], chests + 1);
}

#[test]
fn case_44_an_import_and_a_backup_without_room_change_nothing() {
    let Some(disk) = SmallDisk::mount(1_024) else {
        println!("skipped: a file system of its own cannot be mounted here");
        return;
    };
    let (folder, data) = (tempfile::tempdir().unwrap(), disk.0.path());
    let (few, many) = (folder.path().join("few.jsonl"), folder.path().join("many.jsonl"));
    std::fs::write(&few, export_lines(900)).unwrap();
    std::fs::write(&many, export_lines(20_000).replace("cold-", "more-")).unwrap();
    ran("import", data, &[text(&few)]);
    let before = ran("export", data, &[]);
    let names = || std::fs::read_dir(data).unwrap().flatten().map(|file| file.file_name()).collect::<Vec<_>>();
    let there = names();
    assert!(refused("import", data, &[text(&many), "--merge"]).contains("is full"));
    for copy in 1..9 {
        let copy = data.join(format!("copy-{copy}.db"));
        if !run("backup", data, &[text(&copy)]).status.success() {
            assert!(!copy.exists());
            break;
        }
        std::fs::rename(&copy, data.join(copy.file_name().unwrap()).with_extension("kept")).unwrap();
    }
    assert!(refused("backup", data, &[text(&data.join("copy.db"))]).contains("is full"));
    let left: Vec<_> = names().into_iter().filter(|name| !there.contains(name)).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".kept")), "{left:?}");
    assert_eq!(content(&ran("export", data, &[])), content(&before));
    fsck(data);
}

#[test]
fn a_reader_that_has_seen_enough_ends_a_command_quietly() {
    for arguments in [&["config", "--documented"][..], &["call", "--list"]] {
        // Nobody reads from the beginning on: the first write fails, however small it is.
        let mut child = slotcast(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.success() && said.is_empty(), "{arguments:?}: {said}");
    }
}
