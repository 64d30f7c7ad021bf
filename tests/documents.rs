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

/// All Markdown pages in the root and in docs/.
fn pages(root: &Path) -> Vec<PathBuf> {
    let folders = [root.to_owned(), root.join("docs")];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).expect("a folder"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The text of a page without its fenced blocks.
fn prose(page: &Path) -> String {
    let text = std::fs::read_to_string(page).expect("a page");
    let mut fenced = false;
    let outside = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    });
    outside.flat_map(|line| [line, "\n"]).collect()
}

/// The anchors of a page's headings, as GitHub derives them: `C# and Java (beta)` becomes `c-and-java-beta`.
fn anchors(page: &Path) -> HashSet<String> {
    let text = prose(page);
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// The targets of a page's links that do not lead to another site.
fn relative_links(page: &Path) -> Vec<String> {
    let text = prose(page);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// Whether a link leads to a file or folder and, if that is a page, to one of its headings.
fn resolves(page: &Path, link: &str) -> bool {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = if path.is_empty() { page.to_owned() } else { page.with_file_name(path) };
    target.exists() && anchor.is_none_or(|anchor| anchors(&target).contains(anchor))
}

#[test]
fn every_relative_link_in_the_documents_resolves() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = pages(root);
    let links = pages.iter().flat_map(|page| relative_links(page).into_iter().map(move |link| (page, link)));
    let links: Vec<_> = links.collect();
    assert!(pages.len() > 5 && links.len() > 40, "only {} links on {} pages", links.len(), pages.len());
    let broken = links.iter().filter(|(page, link)| !resolves(page, link));
    let broken: Vec<_> = broken.map(|(page, link)| format!("{}: {link}", page.display())).collect();
    assert!(broken.is_empty(), "these links do not resolve: {broken:#?}");
}

#[test]
fn a_link_to_a_missing_file_or_heading_does_not_resolve() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    assert!(resolves(&readme, "docs/errors.md#request-metadata"));
    assert!(!resolves(&readme, "docs/errors.md#no-such-heading"));
    assert!(!resolves(&readme, "docs/no-such-page.md"));
    assert!(!resolves(&readme, "#no-such-heading"));
}
