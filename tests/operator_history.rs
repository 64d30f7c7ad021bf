//! The commands on the log, run as processes while the store is open: history, at, supply.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_support;

use serde_json::{Value, json};
use slotcast::catalog_file::default_catalog;
use slotcast::domain::{Inventory, OperationKind, PredictionOutcome, SessionId, Slot, Stack};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore};
use slotcast::store::{MutationRecord, Store};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use store_support::*;

const KEY_WINDOW: Duration = Duration::from_secs(60);

fn slotcast(command: &str, data: &Path, arguments: &[&str]) -> Output {
    let mut slotcast = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    slotcast.args([command, "--data"]).arg(data).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn succeed(command: &str, data: &Path, arguments: &[&str]) -> String {
    let output = slotcast(command, data, arguments);
    assert!(output.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn succeed_json(command: &str, data: &Path, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&succeed(command, data, &arguments)).unwrap()
}

fn fail(command: &str, data: &Path, arguments: &[&str], status: i32) -> String {
    let output = slotcast(command, data, arguments);
    assert_eq!(output.status.code(), Some(status), "{command} {arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A store whose items are those of the default catalog, and a chest in it with revisions at 1 s from each other.
struct Scenario {
    place: Place,
    store: EmbeddedStore,
    chest: Arc<Inventory>,
}

impl Scenario {
    fn new() -> Self {
        let place = Place::new();
        let settings = EmbeddedSettings { key_window: KEY_WINDOW, ..place.clock.settings() };
        let store = place.open_with(settings);
        store.accept_catalog(&default_catalog()).unwrap();
        let chest = inventory("chest", Some("ann"), 7, 9, &[(Slot(0), apples(5))]);
        store
            .commit(&[MutationRecord { reason: "a chest".into(), ..transaction(key("create"), vec![created(&chest)]) }])
            .unwrap();
        Self { place, store, chest }
    }

    fn data(&self) -> &Path {
        self.place.folder.path()
    }

    /// Changes slot 0 of the chest, a second later.
    fn set_apples(&mut self, count: u32) {
        self.place.clock.pass(Duration::from_secs(1));
        let next = updated(&self.chest, vec![(Slot(0), apples(count))]);
        let state = next.state.clone().unwrap();
        let named = key(&format!("set-{}", state.contents.revision().0));
        self.store.commit(&[transaction(named, vec![next])]).unwrap();
        self.chest = state;
    }
}

fn apples(count: u32) -> Option<Stack> {
    let code = default_catalog().item("apple").unwrap().code;
    stack(code.get(), count)
}

#[test]
fn history_pages_through_the_changes_of_an_inventory() {
    let mut scenario = Scenario::new();
    (1..=3).for_each(|count| scenario.set_apples(count));
    let first = succeed("history", scenario.data(), &["chest", "--limit", "2"]);
    let expected = "\
1-4  2027-01-15T08:00:03.000Z  set, move
  caller server-1, key set-4
  reason \"a test\"
  added 3 apple, removed 2 apple
  inventory \"chest\" edited, revision 4 of epoch 7
    slot 0: 2 apple -> 3 apple
1-3  2027-01-15T08:00:02.000Z  set, move
  caller server-1, key set-3
  reason \"a test\"
  added 2 apple, removed 1 apple
  inventory \"chest\" edited, revision 3 of epoch 7
    slot 0: 1 apple -> 2 apple
older changes follow; continue with --from 1-2
";
    assert_eq!(first, expected);
    let rest = succeed("history", scenario.data(), &["chest", "--from", "1-2"]);
    let created = "inventory \"chest\" created, revision 1 of epoch 7, layout player, owner \"ann\"\n    slot 0: empty -> 5 apple\nno older changes\n";
    assert!(rest.starts_with("1-2 ") && rest.ends_with(created), "{rest}");
    let page = succeed_json("history", scenario.data(), &["chest", "--limit", "2"]);
    assert_eq!((&page["next"], &page["is_trimmed"]), (&json!("1-2"), &json!(false)));
    assert_eq!(page["changes"][0]["inventories"][0]["slots"][0]["after"], json!({"item": "apple", "count": 3}));
}

#[test]
fn history_explains_an_unknown_inventory_and_a_wrong_position() {
    let scenario = Scenario::new();
    let other = chest("other", 9);
    scenario.store.commit(&[transaction(key("other"), vec![created(&other)])]).unwrap();
    let unknown = fail("history", scenario.data(), &["nobody"], 1);
    assert!(unknown.contains("inventory \"nobody\" never existed"), "{unknown}");
    let wrong = fail("history", scenario.data(), &["chest", "--from", "1-2"], 1);
    assert!(wrong.contains("--from 1-2: the mutation at this position did not change inventory \"chest\""), "{wrong}");
    let ahead = fail("history", scenario.data(), &["chest", "--from", "1-99"], 1);
    assert!(ahead.contains("--from 1-99: the log has no mutation at this position"), "{ahead}");
    for arguments in [&["--kind", "steal"][..], &["--limit", "0"], &["chest", "--from", "x"]] {
        fail("history", scenario.data(), arguments, 2);
    }
}

#[test]
fn a_scan_finds_mutations_by_caller_item_kind_reason_and_time() {
    let mut scenario = Scenario::new();
    (1..=4).for_each(|count| scenario.set_apples(count));
    let other = inventory("other", None, 9, 3, &[(Slot(1), stack(999_999, 2))]);
    let crafted = MutationRecord {
        operations: vec![OperationKind::Craft, OperationKind::Craft],
        session: SessionId::new("s-1").ok(),
        prediction: PredictionOutcome::Mispredicted,
        reason: "crafting".into(),
        ..transaction(uuid_key_of("crafter", scenario.place.clock.right_unix_ms(), 1), vec![created(&other)])
    };
    scenario.store.commit(&[crafted]).unwrap();
    let found = |arguments: &[&str]| -> Vec<String> {
        let found = succeed_json("history", scenario.data(), arguments);
        found["changes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| change["position"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(found(&["--caller", "crafter"]), ["1-6"]);
    assert_eq!(found(&["--kind", "craft"]), ["1-6"]);
    assert_eq!(found(&["--reason", "a chest"]), ["1-1"]);
    assert_eq!(found(&["--item", "999999"]), ["1-6"]);
    assert_eq!(found(&["--item", "apple", "--limit", "3"]), ["1-5", "1-4", "1-3"]);
    assert_eq!(found(&["--item", "apple", "--from", "1-2"]), ["1-2", "1-1"]);
    assert_eq!(found(&["chest", "--kind", "craft"]), Vec::<String>::new());
    assert_eq!(found(&["chest", "--reason", "a test", "--limit", "1"]), ["1-5"]);
    let (since, until) = ("2027-01-15T08:00:01Z", "1800000002000");
    assert_eq!(found(&["--since", since, "--until", until]), ["1-3", "1-2"]);
    assert_eq!(found(&["chest", "--since", since, "--until", until]), ["1-3", "1-2"]);
    assert_eq!(found(&["--caller", "nobody"]), Vec::<String>::new());

    let text = succeed("history", scenario.data(), &["--limit", "1"]);
    assert!(text.contains("session s-1, prediction mispredicted\n  reason \"crafting\"\n"), "{text}");
    assert!(text.contains("    slot 1: empty -> 2 item code 999999\n"), "{text}");
    assert!(text.ends_with("more mutations match; continue with --from 1-5\n"), "{text}");
    assert!(succeed("history", scenario.data(), &[]).ends_with("no more matches\n"));
    let unknown = fail("history", scenario.data(), &["--item", "excalibur"], 1);
    assert!(unknown.contains("unknown item \"excalibur\""), "{unknown}");
}

#[test]
fn at_prints_the_state_at_a_revision_and_at_a_time() {
    let mut scenario = Scenario::new();
    (1..=3).for_each(|count| scenario.set_apples(count));
    let expected = "\
id        chest
owner     ann
layout    player
epoch     7
revision  3
time      2027-01-15T08:00:02.000Z (position 1-3)
slot 0    2 apple
";
    assert_eq!(succeed("at", scenario.data(), &["chest", "3"]), expected);
    assert_eq!(succeed("at", scenario.data(), &["chest", "2027-01-15T08:00:02.999Z"]), expected);
    assert_eq!(succeed("at", scenario.data(), &["chest", "3", "--epoch", "7"]), expected);
    let state = succeed_json("at", scenario.data(), &["chest", "1"]);
    assert_eq!((&state["revision"], &state["time"]), (&json!(1), &json!("2027-01-15T08:00:00.000Z")));
    assert_eq!(state["stacks"], json!([{"slot": 0, "item": "apple", "count": 5}]));

    let newer = fail("at", scenario.data(), &["chest", "9"], 1);
    assert!(newer.contains("revision 9 is newer than the newest revision 4 of epoch 7"), "{newer}");
    let never = fail("at", scenario.data(), &["chest", "1", "--epoch", "8"], 1);
    assert!(never.contains("never had revision 1 in epoch 8"), "{never}");
    let before = fail("at", scenario.data(), &["chest", "2027-01-15T07:59:59Z"], 1);
    assert!(before.contains("did not exist at 2027-01-15T07:59:59.000Z"), "{before}");
    assert!(fail("at", scenario.data(), &["nobody", "1"], 1).contains("\"nobody\" never existed"));
    assert!(
        fail("at", scenario.data(), &["chest", "2027-01-15T08:00:00Z", "--epoch", "7"], 1)
            .contains("--epoch requires a revision")
    );
    fail("at", scenario.data(), &["chest", "latest"], 2);

    scenario.place.clock.pass(Duration::from_secs(1));
    scenario.store.commit(&[transaction(key("delete"), vec![deleted(&scenario.chest)])]).unwrap();
    let gone = fail("at", scenario.data(), &["chest", "5"], 1);
    assert!(gone.contains("was deleted with revision 5 of epoch 7"), "{gone}");
    assert!(succeed("at", scenario.data(), &["chest", "4"]).contains("slot 0    3 apple"));
}

/// Retention has deleted everything up to the last but one change.
#[test]
fn what_retention_deleted_is_reported_with_the_earliest_revision_that_can_be_read() {
    let mut scenario = Scenario::new();
    scenario.set_apples(1);
    scenario.place.clock.pass(KEY_WINDOW * 2);
    scenario.store.fold().unwrap();
    scenario.place.clock.pass(EmbeddedSettings::default().history_age);
    scenario.set_apples(2);
    scenario.store.fold().unwrap();
    assert_eq!(scenario.store.statistics().log_blocks, 0);

    let text = succeed("history", scenario.data(), &["chest"]);
    assert!(text.contains("revision 3 of epoch 7\n") && text.ends_with("\nolder changes were deleted\n"), "{text}");
    let scan = succeed("history", scenario.data(), &[]);
    assert!(scan.ends_with("no more matches; mutations up to 2027-01-15T08:00:01.000Z were deleted\n"), "{scan}");
    let error = fail("at", scenario.data(), &["chest", "1"], 1);
    assert!(
        error.contains("revision 1 is not in the log any more; the earliest revision that can be read is 2 of epoch 7"),
        "{error}"
    );
    let kept = succeed("at", scenario.data(), &["chest", "2"]);
    assert!(kept.contains("time      unknown: ") && kept.contains("slot 0    1 apple"), "{kept}");
    let usage = scenario.store.usage().unwrap().log;
    assert_eq!(usage.trimmed_ms, WALL_CLOCK_START_MS + 1_000);
    assert!(usage.earliest_ms > Some(usage.trimmed_ms));
}

#[test]
fn supply_is_counted_by_item_and_kind_and_survives_retention() {
    let mut scenario = Scenario::new();
    (1..=3).for_each(|count| scenario.set_apples(count));
    let expected = |position: &str| {
        let kinds = json!({"set": {"added": "11", "removed": "8"}});
        let apple = json!({
            "item": "apple", "code": default_catalog().item("apple").unwrap().code.get(),
            "existing": "3", "added": "11", "removed": "8", "kinds": kinds,
        });
        json!({"position": position, "items": [apple]})
    };
    assert_eq!(succeed_json("supply", scenario.data(), &[]), expected("1-4"));
    scenario.place.clock.pass(KEY_WINDOW * 2);
    scenario.store.fold().unwrap();
    scenario.place.clock.pass(EmbeddedSettings::default().history_age * 2);
    scenario.store.fold().unwrap();
    assert_eq!(succeed_json("supply", scenario.data(), &["--item", "apple"]), expected("1-4"));
    let none = succeed_json("supply", scenario.data(), &["--item", "stone"]);
    assert_eq!(none["items"][0]["existing"], "0");
    let text = succeed("supply", scenario.data(), &[]);
    assert!(text.contains("apple") && text.contains("set") && text.ends_with("up to position 1-4\n"), "{text}");
    assert!(fail("supply", scenario.data(), &["--item", "excalibur"], 1).contains("unknown item"));
}

#[test]
fn an_empty_store_has_no_history_and_no_supply() {
    let place = Place::new();
    let store = place.open();
    assert_eq!(succeed("history", place.folder.path(), &[]), "no more matches\n");
    assert_eq!(succeed_json("supply", place.folder.path(), &[]), json!({"position": null, "items": []}));
    store.close().unwrap();
}

#[test]
fn a_backup_without_history_is_made_by_a_flag() {
    let mut scenario = Scenario::new();
    scenario.set_apples(1);
    scenario.place.clock.pass(KEY_WINDOW * 2);
    scenario.store.fold().unwrap();
    let copy = scenario.data().join("copy.db");
    succeed("backup", scenario.data(), &["--without-history", copy.to_str().unwrap()]);
    let report: Value = serde_json::from_str(&succeed("fsck", &copy, &["--json"])).unwrap();
    assert_eq!((&report["ok"], &report["records"]), (&json!(true), &json!(0)));
    assert_eq!(succeed("history", &copy, &["chest"]), "older changes were deleted\n");
}
