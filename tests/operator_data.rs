//! The operator commands on a store, run as processes: backup, restore, export, import, fsck; and a disk that is full.
//!
//! `SLOTCAST_INVENTORIES` makes the store that is backed up under load larger (2,000 by default), to measure.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod process;
mod store_support;

use process::ServerProcess;
use serde_json::Value;
use slotcast::client::{Client, new_mutation_context};
use slotcast::store::Store;
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
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

/// Runs a command on a store and waits for it.
fn run(command: &str, data: &Path, arguments: &[&str]) -> Output {
    slotcast(&[command, "--data"]).arg(data).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn succeed(command: &str, data: &Path, arguments: &[&str]) -> String {
    let output = run(command, data, arguments);
    assert!(output.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail and returns its error.
fn fail(command: &str, data: &Path, arguments: &[&str]) -> String {
    let output = run(command, data, arguments);
    assert_eq!(output.status.code(), Some(1), "{command} {arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn fsck(data: &Path) -> Value {
    let report: Value = serde_json::from_str(&succeed("fsck", data, &["--json"])).unwrap();
    assert_eq!(report["ok"], true, "{report}");
    report
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
        to: None,
        allow_partial: false,
    })
}

async fn get(client: &Client, id: &str) -> v1::Inventory {
    let request = v1::GetInventoryRequest { inventory_id: id.into() };
    client.rpc().get_inventory(request).await.unwrap().into_inner().inventory.unwrap()
}

async fn total(client: &Client, id: &str) -> u32 {
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

/// The state that the writers of a test share.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    /// The acknowledged apples of each writer.
    apples: [AtomicU32; WRITERS],
    latencies: Mutex<Vec<Duration>>,
}

impl Load {
    /// Moves stones between the chests of the writers, and adds one apple at a time to the writer's own inventory.
    async fn write(self: Arc<Self>, uri: String, writer: usize) {
        let client = Client::new(&uri, "operator-test").unwrap();
        let mine = format!("chest-{writer}");
        while !self.stop.load(Ordering::SeqCst) {
            let began = Instant::now();
            client.mutate(new_mutation_context(), add(&format!("apples-{writer}"), "apple", 1, vec![])).await.unwrap();
            self.latencies.lock().unwrap().push(began.elapsed());
            self.apples[writer].fetch_add(1, Ordering::SeqCst);
            let other = format!("chest-{}", (writer + 1 + fastrand::usize(..WRITERS - 1)) % WRITERS);
            let moved = client.mutate(new_mutation_context(), transfer(&mine, &other, fastrand::u32(1..9))).await;
            assert!(moved.as_ref().err().is_none_or(|status| status.code() == Code::FailedPrecondition), "{moved:?}");
        }
    }

    fn acknowledged(&self) -> [u32; WRITERS] {
        std::array::from_fn(|writer| self.apples[writer].load(Ordering::SeqCst))
    }

    fn percentiles(&self) -> (usize, Duration, Duration, Duration) {
        let mut latencies = std::mem::take(&mut *self.latencies.lock().unwrap());
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
        (latencies.len(), at(50), at(99), at(100))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_has_everything_acknowledged_before_and_conserves_items() {
    let inventories = std::env::var("SLOTCAST_INVENTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let folder = tempfile::tempdir().unwrap();
    let (data, lines) = (folder.path().join("data"), folder.path().join("cold.jsonl"));
    std::fs::write(&lines, export_lines(inventories)).unwrap();
    succeed("import", &data, &[text(&lines)]);
    let server = ServerProcess::start(&data, &[]);
    let client = Client::new(&server.uri, "operator-test").unwrap();
    for writer in 0..WRITERS {
        let stones: Vec<_> = (0..10).map(|slot| (slot, "stone", 64)).collect();
        client.mutate(new_mutation_context(), create(&format!("chest-{writer}"), &stones)).await.unwrap();
        client.mutate(new_mutation_context(), create(&format!("apples-{writer}"), &[])).await.unwrap();
    }
    let remembered = new_mutation_context();
    client.mutate(remembered.clone(), add("chest-0", "coal", 3, vec![])).await.unwrap();

    let load = Arc::new(Load::default());
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(load.clone().write(server.uri.clone(), writer))).collect();
    let enough = async {
        while load.latencies.lock().unwrap().len() < 300 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), enough).await.expect("the writers go on");
    let quiet = load.percentiles();
    let (before, began) = (load.acknowledged(), Instant::now());
    let copy = folder.path().join("copy.db");
    let (from, to) = (data.clone(), copy.clone());
    let output = tokio::task::spawn_blocking(move || succeed("backup", &from, &[text(&to)])).await.unwrap();
    let (took, after, busy) = (began.elapsed(), load.acknowledged(), load.percentiles());
    // fsck on the running store, too.
    fsck(&data);
    let checking = load.percentiles();
    load.stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    println!("{output}in {took:?}; calls, p50, p99, max: before {quiet:?}, during {busy:?}, during fsck {checking:?}");

    let found = fsck(&copy);
    let again = run("backup", &data, &[text(&copy)]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("copy.db already exists"), "{again:?}");
    let restored = folder.path().join("restored");
    succeed("restore", &restored, &[text(&copy)]);
    assert_eq!(fsck(&restored)["items"], found["items"]);
    let elsewhere = ServerProcess::start(&restored, &[]);
    let client = Client::new(&elsewhere.uri, "operator-test").unwrap();
    let (mut stones, mut coal) = (0, 0);
    for writer in 0..WRITERS {
        let apples = total(&client, &format!("apples-{writer}")).await;
        assert!(before[writer] <= apples && apples <= after[writer] + 1, "{before:?} {apples} {after:?}");
        for stack in get(&client, &format!("chest-{writer}")).await.stacks.into_iter().filter_map(|slot| slot.stack) {
            *if stack.item == "stone" { &mut stones } else { &mut coal } += stack.count;
        }
    }
    assert_eq!((stones, coal), (WRITERS as u32 * STONES, 3));
    let retried = client.mutate(remembered, add("chest-0", "coal", 3, vec![])).await.unwrap();
    assert!(retried.replayed, "a retry of a mutation in the backup gets its stored reply");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_35_a_stream_that_resumes_after_a_restore_gets_a_full_frame_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (data, copy) = (folder.path().join("data"), folder.path().join("copy.db"));
    let mut server = ServerProcess::start(&data, &[]);
    let client = Client::new(&server.uri, "operator-test").unwrap();
    client.mutate(new_mutation_context(), create("a", &[(0, "stone", 5)])).await.unwrap();
    let early = new_mutation_context();
    client.mutate(early.clone(), add("a", "coal", 1, vec![])).await.unwrap();
    succeed("backup", &data, &[text(&copy)]);
    let late = new_mutation_context();
    let after = client.mutate(late.clone(), add("a", "coal", 1, vec![])).await.unwrap().inventories.remove(0);
    assert!(fail("restore", &data, &[text(&copy), "--force"]).contains("already open in another process"));
    server.kill();
    assert!(fail("restore", &data, &[text(&copy)]).contains("already exists"));
    let output = succeed("restore", &data, &[text(&copy), "--force"]);
    let kept = output.lines().next().unwrap().strip_prefix("the previous store was renamed to ").unwrap();
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
    assert_eq!(total(&client, "a").await, 6);
    let again = client.mutate(late, add("a", "coal", 1, vec![])).await.unwrap();
    assert!(!again.replayed, "the restore removed its effect");
    assert_eq!(total(&client, "a").await, 7);
}

/// The lines of an export without the fields that an import changes.
fn content(export: &str) -> Vec<Value> {
    let line = |line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for changed in ["epoch", "revision", "exported_unix_ms"] {
            line.as_object_mut().unwrap().remove(changed);
        }
        line
    };
    export.lines().map(line).collect()
}

#[test]
fn an_export_that_is_imported_and_exported_again_is_the_same() {
    let place = Place::new();
    let mut history = History::new(77, 40);
    let store = place.open();
    for number in 0..150 {
        store.commit(&history.batch()).unwrap();
        if number == 90 {
            store.fold().unwrap();
        }
    }
    let (data, other) = (place.folder.path().to_owned(), place.folder.path().join("other"));
    let first = succeed("export", &data, &[]);
    assert_eq!(content(&first).len(), history.model.inventories.len() + 1);
    let file = place.folder.path().join("export.jsonl");
    succeed("export", &data, &[text(&file)]);
    assert_eq!(content(&std::fs::read_to_string(&file).unwrap()), content(&first));
    assert!(fail("export", &data, &[text(&file)]).contains("already exists"));
    let dry_run = succeed("import", &other, &[text(&file), "--oversized", "--dry-run"]);
    assert!(dry_run.contains("nothing was written") && !other.exists(), "{dry_run}");
    succeed("import", &other, &[text(&file), "--oversized"]);
    assert_eq!(content(&succeed("export", &other, &["-"])), content(&first));
    assert_eq!(fsck(&other)["items"], fsck(&data)["items"]);
    let epochs = |export: &str| -> Vec<u64> {
        let line = |line| serde_json::from_str::<Value>(line).unwrap()["epoch"].as_u64();
        export.lines().filter_map(line).collect()
    };
    let (before, after) = (epochs(&first), epochs(&succeed("export", &other, &[])));
    assert!(before.len() == after.len() && before.iter().zip(&after).all(|(before, after)| before != after));

    let lines = first.lines().count() - 1;
    assert!(fail("import", &other, &[text(&file), "--oversized"]).contains("add to them with --merge"));
    let conflicts = fail("import", &other, &[text(&file), "--oversized", "--merge"]);
    assert!(conflicts.contains(&format!("{lines} problem")), "{conflicts}");
    assert!(
        conflicts.contains("line 2: inventory") && conflicts.contains("already exists in the store"),
        "{conflicts}"
    );
}

#[test]
fn an_import_reports_every_invalid_line_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("bad.jsonl"));
    std::fs::write(&file, export_lines(3)).unwrap();
    succeed("import", &data, &[text(&file)]);
    let before = succeed("export", &data, &[]);
    let invalid = [
        r#"{"slotcast_export":1,"catalog":"","exported_unix_ms":0,"inventories":7}"#,
        r#"{"id":"good","layout":"chest","stacks":[]}"#,
        r#"{"id":"large","layout":"chest","stacks":[{"slot":0,"item":"stone","count":65}]}"#,
        "no json",
        r#"{"id":"good","layout":"chest","stacks":[]}"#,
        r#"{"id":"cold-1","layout":"chest","stacks":[]}"#,
        r#"{"id":"far","layout":"chest","stacks":[{"slot":27,"item":"stone","count":1}]}"#,
    ];
    std::fs::write(&file, invalid.join("\n")).unwrap();
    let error = fail("import", &data, &[text(&file), "--merge"]);
    for expected in [
        "nothing was imported: 6 problems",
        "line 1: the header announces 7 inventories but only 6 follow: the file is truncated",
        "line 3: slot 0: count exceeds the max_stack of \"stone\", 64: got 65",
        "line 4: not a valid inventory",
        "line 5: inventory \"good\" is a duplicate of line 2",
        "line 6: inventory \"cold-1\" already exists in the store",
        "line 7: slot 27: out of range, the layout has 27 slots",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert_eq!(content(&succeed("export", &data, &[])), content(&before));
    std::fs::write(&file, "").unwrap();
    assert!(fail("import", &data, &[text(&file), "--merge"]).contains("the file is empty"));
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().flatten().map(|file| file.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn fsck_reports_every_problem_and_exits_with_status_1() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("some.jsonl"));
    std::fs::write(&file, export_lines(3)).unwrap();
    succeed("import", &data, &[text(&file)]);
    let sound = succeed("fsck", &data, &[]);
    assert!(sound.contains("is clean: 3 inventories, 60 stacks, 420 items"), "{sound}");
    let connection = rusqlite::Connection::open(data.join("slotcast.db")).unwrap();
    connection.execute("UPDATE inventories SET owner = 'eve' WHERE id <> 'cold-1'", []).unwrap();
    drop(connection);
    let output = run("fsck", &data.join("slotcast.db"), &[]);
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        stdout.lines().collect::<Vec<_>>(),
        ["inventory \"cold-0\": its checksum does not match", "inventory \"cold-2\": its checksum does not match"]
    );
    assert!(String::from_utf8(output.stderr).unwrap().contains("has 2 problems"));
    let output = run("fsck", &folder.path().join("nowhere"), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["ok"], false);
    assert!(fail("export", &data, &["-"]).contains("run `slotcast fsck` to list all problems"));
    let rest = succeed("export", &data, &["--skip-damaged"]);
    assert!(rest.lines().count() == 2 && rest.contains("cold-1"), "{rest}");
}

/// A small file system, unmounted on drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Returns `None` if mounting is not permitted.
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
async fn case_44_on_a_full_disk_mutations_fail_reads_succeed_and_the_store_recovers() {
    let Some(disk) = SmallDisk::mount(2_048) else {
        println!("skipped: mounting a file system is not permitted");
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
        let (context, create) = (new_mutation_context(), Operation::Create(create));
        match client.mutate(context.clone(), create.clone()).await {
            Ok(_) => chests += 1,
            Err(status) => {
                full = Some((status, context, create));
                break;
            }
        }
    }
    let (status, context, create) = full.expect("the disk is full in the end");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(chests > 10, "{chests}");
    for number in [0, chests - 1] {
        assert_eq!(total(&client, &format!("chest-{number}")).await, 8, "reads are still served");
    }
    let again = client.mutate(context.clone(), create.clone()).await.unwrap_err();
    assert_eq!(again.code(), Code::ResourceExhausted, "{again:?}");

    disk.resize(32_768);
    let made = client.mutate(context, create).await.expect("the disk has room again");
    assert!(!made.replayed);
    assert_eq!(total(&client, &format!("chest-{chests}")).await, 8);
    drop(server);
    let found = fsck(disk.0.path());
    assert_eq!(found["inventories"], chests + 1);
}

#[test]
fn case_44_an_import_and_a_backup_on_a_full_disk_change_nothing() {
    let Some(disk) = SmallDisk::mount(1_024) else {
        println!("skipped: mounting a file system is not permitted");
        return;
    };
    let (folder, data) = (tempfile::tempdir().unwrap(), disk.0.path());
    let (few, many) = (folder.path().join("few.jsonl"), folder.path().join("many.jsonl"));
    std::fs::write(&few, export_lines(900)).unwrap();
    std::fs::write(&many, export_lines(20_000).replace("cold-", "more-")).unwrap();
    succeed("import", data, &[text(&few)]);
    let before = succeed("export", data, &[]);
    let names = || std::fs::read_dir(data).unwrap().flatten().map(|file| file.file_name()).collect::<Vec<_>>();
    let before_names = names();
    assert!(fail("import", data, &[text(&many), "--merge"]).contains("is full"));
    for copy in 1..9 {
        let copy = data.join(format!("copy-{copy}.db"));
        if !run("backup", data, &[text(&copy)]).status.success() {
            assert!(!copy.exists());
            break;
        }
        std::fs::rename(&copy, data.join(copy.file_name().unwrap()).with_extension("kept")).unwrap();
    }
    let error = fail("backup", data, &[text(&data.join("copy.db"))]);
    assert!(error.contains("is full"), "{error}");
    let left: Vec<_> = names().into_iter().filter(|name| !before_names.contains(name)).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".kept")), "{left:?}");
    assert_eq!(content(&succeed("export", data, &[])), content(&before));
    fsck(data);
}

#[test]
fn a_closed_pipe_ends_a_command_without_an_error() {
    for arguments in [&["config", "--documented"][..], &["call", "--list"]] {
        // The pipe is closed from the start, so the first write fails.
        let mut child = slotcast(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.success() && error.is_empty(), "{arguments:?}: {error}");
    }
}
