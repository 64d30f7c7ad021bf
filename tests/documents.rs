//! The tests that documents name exist.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Returns the names of all functions in a file, or in all files of a folder.
fn function_names(path: &Path) -> HashSet<String> {
    let mut found = HashSet::new();
    let mut paths = vec![path.to_owned()];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(std::fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
            found.extend(names.map(str::to_owned));
        }
    }
    found
}

/// Returns the file or folder of a test, for a target as in `store_keys::a_test` or `src/sync/limit.rs::a_test`.
fn source_path(root: &Path, target: &str) -> PathBuf {
    if target.starts_with("src/") {
        return root.join(target);
    }
    let folder = root.join("tests").join(target);
    if folder.is_dir() { folder } else { root.join("tests").join(target).with_extension("rs") }
}

#[test]
fn every_test_named_in_reliability_md_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/reliability.md")).expect("the page");
    let quoted = page.split('`').skip(1).step_by(2);
    let named: Vec<_> =
        quoted.filter_map(|text| text.split_once("::")).filter(|(_, test)| !test.ends_with('…')).collect();
    assert!(named.len() > 80, "only {} tests are named", named.len());
    let missing = named.iter().filter(|(target, test)| !function_names(&source_path(root, target)).contains(*test));
    let missing: Vec<_> = missing.map(|(target, test)| format!("{target}::{test}")).collect();
    assert!(missing.is_empty(), "these tests do not exist: {missing:#?}");
}
