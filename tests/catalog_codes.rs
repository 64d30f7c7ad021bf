//! A store records the item of each code, and rejects a catalog that assigns a stored code to another item.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod process;

use process::ServerProcess;
use slotcast::catalog_file;
use slotcast::client::{Client, new_mutation_context};
use slotcast::domain::Catalog;
use slotcast::store::embedded::tools::{self, Snapshot};
use slotcast::store::embedded::{CatalogError, EmbeddedSettings, EmbeddedStore};
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Returns a catalog file with items: id, code, and `renamed_from`.
fn text(items: &[(&str, u32, Option<&str>)]) -> String {
    let item = |(id, code, before): &(&str, u32, Option<&str>)| {
        let before = before.map(|before| format!(", renamed_from = '{before}'")).unwrap_or_default();
        format!("{{ id = '{id}', code = {code}, max_stack = 64{before} }}")
    };
    let items: Vec<_> = items.iter().map(item).collect();
    let layouts = "[[layouts]]\nid = 'chest'\nsections = [{ name = 'chest', slots = 27 }]";
    format!("items = [{}]\n{layouts}\n", items.join(", "))
}

fn written(folder: &Path, items: &[(&str, u32, Option<&str>)]) -> PathBuf {
    let path = folder.join("catalog.toml");
    std::fs::write(&path, text(items)).unwrap();
    path
}

fn catalog(items: &[(&str, u32, Option<&str>)]) -> Catalog {
    let folder = tempfile::tempdir().unwrap();
    catalog_file::read(written(folder.path(), items)).unwrap()
}

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("slotcast.db")
    }

    /// Opens the store, checks a catalog, and closes the store. Returns for each conflict the stored id, the code, and
    /// the id in the catalog.
    fn accept(&self, items: &[(&str, u32, Option<&str>)]) -> Result<(), Vec<(String, u32, String)>> {
        let store = EmbeddedStore::open(&self.path(), EmbeddedSettings::default()).unwrap();
        match store.accept_catalog(&catalog(items)) {
            Ok(()) => Ok(()),
            Err(CatalogError::CodesReused { conflicts, .. }) => Err(conflicts
                .into_iter()
                .map(|conflict| (conflict.known_id, conflict.item.code.get(), conflict.item.id.to_string()))
                .collect()),
            Err(CatalogError::Store(error)) => panic!("{error}"),
        }
    }
}

fn conflict(known: &str, code: u32, id: &str) -> (String, u32, String) {
    (known.to_owned(), code, id.to_owned())
}

#[test]
fn a_code_cannot_be_reassigned_even_after_its_item_was_removed() {
    let place = Place::new();
    place.accept(&[("coal", 1, None), ("sand", 2, None)]).unwrap();
    place.accept(&[("coal", 1, None), ("sand", 2, None), ("gold", 3, None)]).unwrap();
    let reused = place.accept(&[("coal", 1, None), ("ruby", 2, None), ("iron", 3, None)]);
    assert_eq!(reused, Err(vec![conflict("sand", 2, "ruby"), conflict("gold", 3, "iron")]));
    let swapped = place.accept(&[("coal", 2, None), ("sand", 1, None)]);
    assert_eq!(swapped, Err(vec![conflict("sand", 2, "coal"), conflict("coal", 1, "sand")]));

    place.accept(&[("coal", 1, None)]).unwrap();
    assert_eq!(place.accept(&[("coal", 1, None), ("ruby", 2, None)]), Err(vec![conflict("sand", 2, "ruby")]));
    place.accept(&[("coal", 1, None), ("sand", 2, None), ("ruby", 4, None)]).unwrap();
}

#[test]
fn a_rejected_catalog_changes_nothing() {
    let place = Place::new();
    place.accept(&[("coal", 1, None)]).unwrap();
    place.accept(&[("ash", 1, None), ("gold", 3, None)]).unwrap_err();
    place.accept(&[("coal", 1, None), ("iron", 3, None)]).unwrap();
}

#[test]
fn a_renamed_item_keeps_its_code_if_renamed_from_is_the_stored_id() {
    let place = Place::new();
    let (was, is, then) =
        (("planks", 1, None), ("oak_planks", 1, Some("planks")), ("oak_board", 1, Some("oak_planks")));
    place.accept(&[is]).unwrap();
    assert_eq!(place.accept(&[was]), Err(vec![conflict("oak_planks", 1, "planks")]), "a new store knows the new id");

    let place = Place::new();
    place.accept(&[was]).unwrap();
    assert_eq!(place.accept(&[then]), Err(vec![conflict("planks", 1, "oak_board")]), "a step is missing");
    place.accept(&[is]).unwrap();
    place.accept(&[is]).unwrap();
    place.accept(&[then]).unwrap();
    let wrong = place.accept(&[("board", 1, Some("planks"))]);
    assert_eq!(wrong, Err(vec![conflict("oak_board", 1, "board")]), "it has another id since");
    let unknown = place.accept(&[("board", 1, Some("no such item"))]);
    assert_eq!(unknown, Err(vec![conflict("oak_board", 1, "board")]));
    place.accept(&[("oak_board", 1, Some("no such item")), ("gold", 2, Some("silver"))]).unwrap();
}

#[test]
fn two_items_swap_their_ids_only_if_both_declare_renamed_from() {
    let place = Place::new();
    place.accept(&[("coal", 1, None), ("sand", 2, None)]).unwrap();
    let half = place.accept(&[("sand", 1, Some("coal")), ("coal", 2, None)]);
    assert_eq!(half, Err(vec![conflict("sand", 2, "coal")]));
    place.accept(&[("sand", 1, Some("coal")), ("coal", 2, Some("sand"))]).unwrap();
}

#[test]
fn a_catalog_with_duplicates_or_an_invalid_renamed_from_is_rejected_with_all_problems() {
    let folder = tempfile::tempdir().unwrap();
    let problems_of = |items: &[(&str, u32, Option<&str>)]| {
        catalog_file::read(written(folder.path(), items)).unwrap_err().to_string()
    };
    let problems = problems_of(&[("a", 1, Some("a")), ("b", 1, Some("")), ("b", 2, None)]);
    for problem in [
        "item \"a\": renamed_from must be a former id, not its own",
        "item \"b\": renamed_from must not be empty",
        "item \"b\": code 1 is used by another item",
        "item \"b\": duplicate id",
    ] {
        assert!(problems.contains(problem), "{problems}");
    }
}

#[test]
fn a_backup_and_a_restore_preserve_the_codes() {
    let place = Place::new();
    place.accept(&[("coal", 1, None)]).unwrap();
    let quiet = &mut |_| ControlFlow::Continue(());
    let copy = place.folder.path().join("copy.db");
    tools::backup(&Snapshot::open(&place.path()).unwrap(), &copy, false, quiet).unwrap();
    let restored = Place::new();
    tools::restore(&copy, &restored.path(), false, 1, &mut slotcast::engine::new_epoch, quiet).unwrap();
    assert_eq!(restored.accept(&[("ash", 1, None)]), Err(vec![conflict("coal", 1, "ash")]));
    let checked = Snapshot::open(&copy).unwrap().check_catalog(&catalog(&[("ash", 1, None)]));
    assert!(matches!(checked, Err(CatalogError::CodesReused { .. })), "{checked:?}");
    assert_eq!(tools::check(&Snapshot::open(&restored.path()).unwrap(), quiet).problems, Vec::<String>::new());
}

fn slotcast(command: &str, data: &Path, arguments: &[&str]) -> Output {
    let mut slotcast = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    slotcast.arg(command).arg("--data").arg(data).args(arguments).stdin(Stdio::null()).output().unwrap()
}

async fn create_bag_of_sand(server: &ServerProcess) {
    let sand = v1::Stack { item: "sand".into(), count: 5, ..v1::Stack::default() };
    let create = v1::CreateInventory {
        inventory_id: "bag".into(),
        layout: "chest".into(),
        stacks: vec![v1::SlotStack { slot: 0, stack: Some(sand) }],
        ..v1::CreateInventory::default()
    };
    let client = Client::new(&server.uri, "test").unwrap();
    client.mutate(new_mutation_context(), Operation::Create(create)).await.unwrap();
}

/// Returns the item and count in the bag.
async fn held_in_bag(server: &ServerProcess) -> (String, u32) {
    let request = v1::GetInventoryRequest { inventory_id: "bag".into() };
    let reply = Client::new(&server.uri, "test").unwrap().rpc().get_inventory(request).await.unwrap().into_inner();
    let stack = reply.inventory.unwrap().stacks.remove(0).stack.unwrap();
    (stack.item, stack.count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_command_rejects_a_catalog_that_reassigns_stored_codes() {
    let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = written(folder.path(), &[("coal", 1, None), ("sand", 2, None)]);
    let with_catalog = ["--catalog", path.to_str().unwrap()];
    let mut server = ServerProcess::start(data.path(), &with_catalog);
    create_bag_of_sand(&server).await;
    assert!(server.terminate().success());

    written(folder.path(), &[("coal", 1, None), ("gold", 2, None)]);
    let lines = folder.path().join("lines");
    std::fs::write(&lines, "{\"slotcast_export\":1,\"catalog\":\"\",\"exported_unix_ms\":0}\n").unwrap();
    let lines = lines.to_str().unwrap();
    let listening = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let commands: [(&str, Vec<&str>); 5] = [
        ("config", vec![]),
        ("serve", listening.to_vec()),
        ("export", vec![]),
        ("import", vec!["--merge", lines]),
        ("import", vec!["--merge", "--dry-run", lines]),
    ];
    for (command, arguments) in &commands {
        let output = slotcast(command, data.path(), &[&with_catalog[..], arguments].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}: {stderr}");
        assert!(
            stderr.contains("code 2 belongs to item \"sand\", the catalog assigns it to \"gold\""),
            "{command}: {stderr}"
        );
        assert!(stderr.contains("renamed_from") && output.stdout.is_empty(), "{command}: {stderr}");
    }

    written(folder.path(), &[("coal", 1, None), ("quicksand", 2, Some("sand"))]);
    for (command, arguments) in commands.iter().filter(|(command, _)| *command != "serve") {
        let output = slotcast(command, data.path(), &[&with_catalog[..], arguments].concat());
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut server = ServerProcess::start(data.path(), &with_catalog);
    assert_eq!(held_in_bag(&server).await, ("quicksand".to_owned(), 5), "the same item under its new id");
    assert!(server.terminate().success());
}

#[test]
fn an_import_into_a_new_store_records_the_codes_of_the_catalog() {
    let (folder, place) = (tempfile::tempdir().unwrap(), Place::new());
    let path = written(folder.path(), &[("coal", 1, None)]);
    let lines = folder.path().join("lines");
    let inventory = r#"{"id":"bag","layout":"chest","stacks":[{"slot":0,"item":"coal","count":7}]}"#;
    let header = r#"{"slotcast_export":1,"catalog":"","exported_unix_ms":0,"inventories":1}"#;
    std::fs::write(&lines, format!("{header}\n{inventory}\n")).unwrap();
    let arguments = ["--catalog", path.to_str().unwrap(), lines.to_str().unwrap()];
    let output = slotcast("import", place.folder.path(), &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(place.accept(&[("ash", 1, None)]), Err(vec![conflict("coal", 1, "ash")]));
}
