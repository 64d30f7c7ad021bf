//! Reads the catalog from a TOML file. The comments at the top of the built-in catalog, `catalog_file/default.toml`,
//! describe the format.

use crate::domain::catalog::{COUNT_MAX, CatalogSource, RecipeSource, catalog_name_error};
use crate::domain::{Catalog, Count, Fingerprint, ItemCode, Recipe};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const DEFAULT: &str = include_str!("catalog_file/default.toml");

/// Why a catalog file is invalid, and how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogFileError {
    #[error("cannot read the catalog {}: {error} (check the path and its permissions)", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("the catalog {} is not valid:\n{problem}\nCorrect it and try again.", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("the catalog {} has {}:\n{}\nCorrect them and try again.", path.display(), count(problems), lines(problems))]
    Invalid { path: PathBuf, problems: Vec<String> },
}

/// Returns the built-in catalog.
pub fn default_catalog() -> Catalog {
    // The tests of this module ensure that the built-in catalog is valid.
    parse(DEFAULT, Path::new("(built-in)")).expect("the built-in catalog is valid")
}

/// Reads and validates a catalog file. The error lists every problem.
pub fn read(path: impl AsRef<Path>) -> Result<Catalog, CatalogFileError> {
    let path = path.as_ref();
    let text =
        std::fs::read_to_string(path).map_err(|error| CatalogFileError::Unreadable { path: path.to_owned(), error })?;
    parse(&text, path)
}

/// Reads the file at `path`, or returns the built-in catalog if there is no path.
pub fn read_or_default(path: Option<&Path>) -> Result<Catalog, CatalogFileError> {
    path.map_or_else(|| Ok(default_catalog()), read)
}

/// Returns a fingerprint of the catalog's content, 16 hexadecimal digits. The order of items and recipes in the file
/// does not change the fingerprint.
pub fn version(catalog: &Catalog) -> String {
    format!("{:016x}", Fingerprint::of(canonical(catalog).as_bytes()).0)
}

fn parse(text: &str, path: &Path) -> Result<Catalog, CatalogFileError> {
    let file: CatalogToml = toml::from_str(text).map_err(|error| CatalogFileError::Malformed {
        path: path.to_owned(),
        problem: error.to_string().trim_end().to_owned(),
    })?;
    let mut problems: Vec<String> =
        file.items.iter().flat_map(|item| [oversized(item), misnamed(item)]).flatten().collect();
    let renamed = |item: &ItemEntry| Some((item.id.clone(), item.renamed_from.clone()?));
    let renamed: Vec<_> = file.items.iter().filter_map(renamed).collect();
    match Catalog::new(file.into()) {
        Ok(catalog) if problems.is_empty() => {
            return Ok(catalog.with_renamed(renamed.iter().map(|(id, before)| (id.as_str(), before.as_str()))));
        }
        Ok(_) => {}
        Err(more) => problems.extend(more),
    }
    Err(CatalogFileError::Invalid { path: path.to_owned(), problems })
}

/// Reports a stack limit above the maximum count of a request.
fn oversized(item: &ItemEntry) -> Option<String> {
    (item.max_stack > COUNT_MAX)
        .then(|| format!("item {:?}: max_stack must be at most {COUNT_MAX}, got {}", item.id, item.max_stack))
}

/// Reports a former id that is not a valid item id.
fn misnamed(item: &ItemEntry) -> Option<String> {
    let before = item.renamed_from.as_ref()?;
    match catalog_name_error(before) {
        Some(error) => Some(format!("item {:?}: renamed_from {error}", item.id)),
        None if *before == item.id => {
            Some(format!("item {:?}: renamed_from must be a former id, not its own", item.id))
        }
        None => None,
    }
}

fn count(problems: &[String]) -> String {
    match problems.len() {
        1 => "1 problem".to_owned(),
        several => format!("{several} problems"),
    }
}

fn lines(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

/// Returns the content as a text that does not depend on the order in the file. Each name follows its length, so that
/// different lists of names never produce the same text.
fn canonical(catalog: &Catalog) -> String {
    let mut items: Vec<_> = catalog.items().iter().collect();
    items.sort_by_key(|item| item.code);
    let mut recipes: Vec<_> = catalog.recipes().iter().collect();
    recipes.sort_by(|one, other| one.id.cmp(&other.id));
    let mut text = String::new();
    for item in items {
        add_line(&mut text, format_args!("item {} {} {}", name(&item.id), item.code.get(), item.max_stack.get()));
    }
    for recipe in recipes {
        let Recipe { id, inputs, outputs } = &**recipe;
        add_line(&mut text, format_args!("recipe {} {:?} {:?}", name(id), by_code(inputs), by_code(outputs)));
    }
    for layout in catalog.layouts() {
        add_line(&mut text, format_args!("layout {}", name(layout.id.as_str())));
        for section in &layout.sections {
            add_line(&mut text, format_args!("section {} {}", name(&section.name), section.slots));
        }
    }
    text
}

fn add_line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "{content}");
}

fn name(name: &str) -> String {
    format!("{}:{name}", name.len())
}

fn by_code(parts: &[(ItemCode, Count)]) -> BTreeMap<u32, u32> {
    parts.iter().map(|(item, count)| (item.get(), count.get())).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogToml {
    items: Vec<ItemEntry>,
    #[serde(default)]
    recipes: Vec<RecipeEntry>,
    layouts: Vec<LayoutEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemEntry {
    id: String,
    code: u32,
    max_stack: u32,
    renamed_from: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeEntry {
    id: String,
    /// Sorted by item id, so that every read of a file produces the same recipe.
    #[serde(default)]
    inputs: BTreeMap<String, u32>,
    #[serde(default)]
    outputs: BTreeMap<String, u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LayoutEntry {
    id: String,
    sections: Vec<SectionEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SectionEntry {
    name: String,
    slots: u64,
}

impl From<CatalogToml> for CatalogSource {
    fn from(file: CatalogToml) -> Self {
        Self {
            items: file.items.into_iter().map(|item| (item.id, item.code, item.max_stack)).collect(),
            recipes: file.recipes.into_iter().map(RecipeSource::from).collect(),
            layouts: file.layouts.into_iter().map(<(String, Vec<(String, u64)>)>::from).collect(),
        }
    }
}

impl From<RecipeEntry> for RecipeSource {
    fn from(recipe: RecipeEntry) -> Self {
        let RecipeEntry { id, inputs, outputs } = recipe;
        Self { id, inputs: inputs.into_iter().collect(), outputs: outputs.into_iter().collect() }
    }
}

impl From<LayoutEntry> for (String, Vec<(String, u64)>) {
    fn from(layout: LayoutEntry) -> Self {
        (layout.id, layout.sections.into_iter().map(|section| (section.name, section.slots)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::LayoutId;

    fn temporary_file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn problem(text: &str) -> String {
        let file = temporary_file(text);
        let error = read(file.path()).expect_err("the catalog is invalid").to_string();
        let name = file.path().display().to_string();
        assert!(error.contains(&name), "the error does not name the file: {error}");
        error.replace(&name, "FILE")
    }

    #[test]
    fn the_built_in_catalog_has_the_items_recipes_and_layouts_of_the_design() {
        let catalog = default_catalog();
        assert_eq!((catalog.items().len(), catalog.recipes().len(), catalog.layouts().count()), (29, 9, 2));
        let player = catalog.layout(&LayoutId::new("player").unwrap()).unwrap();
        let sections: Vec<_> = player.sections.iter().map(|section| (&*section.name, section.slots)).collect();
        assert_eq!(sections, [("hotbar", 9), ("main", 27)]);
        let torch = catalog.recipe("torch").unwrap();
        let inputs: Vec<_> = torch.inputs.iter().map(|(item, count)| (item.get(), count.get())).collect();
        assert_eq!(inputs, [(24, 1), (21, 1)], "sorted by the items' ids");
    }

    #[test]
    fn a_file_is_read_and_all_its_problems_are_reported_at_once() {
        assert_eq!(read(temporary_file(DEFAULT).path()).unwrap().items().len(), 29);
        let error = problem(
            "items = [{ id = 'a', code = 0, max_stack = 1 }, { id = 'b', code = 1, max_stack = 0 }]\n\
             recipes = [{ id = 'r', inputs = { zinc = 1 } }]\n\
             layouts = [{ id = 'l', sections = [] }]",
        );
        let expected = "the catalog FILE has 4 problems:\n  item \"a\": code must not be 0\n  \
                        item \"b\": max_stack must not be 0\n  recipe \"r\": unknown item \"zinc\"\n  \
                        layout \"l\": must have 1 to 1024 slots, got 0\nCorrect them and try again.";
        assert_eq!(error, expected);
    }

    #[test]
    fn errors_for_a_misspelled_key_a_bad_number_and_a_missing_file_name_the_place() {
        let error = problem("items = []\nlayuots = []");
        assert!(error.contains("line 2") && error.contains("layuots"), "{error}");
        let error = problem("items = [{ id = 'a', code = 1, max_stack = 2147483648 }]\nlayouts = []");
        assert!(error.contains("item \"a\": max_stack must be at most 2147483647, got 2147483648"), "{error}");
        let error = problem("items = [{ id = 'a', code = -1, max_stack = 1 }]\nlayouts = []");
        assert!(error.contains("line 1") && error.contains("-1"), "{error}");
        let error = read("/no/such/catalog.toml").expect_err("the file does not exist").to_string();
        assert!(error.starts_with("cannot read the catalog /no/such/catalog.toml:"), "{error}");
    }

    #[test]
    fn the_version_depends_on_the_content_and_not_on_the_order() {
        let catalog = |items: &str, slots: u32| {
            let text =
                format!("items = [{items}]\n[[layouts]]\nid = 'l'\nsections = [{{ name = 's', slots = {slots} }}]");
            version(&parse(&text, Path::new("test")).unwrap())
        };
        let (a, b) = ("{ id = 'a', code = 1, max_stack = 64 }", "{ id = 'b', code = 2, max_stack = 64 }");
        let base = catalog(&format!("{a}, {b}"), 9);
        assert_eq!(base.len(), 16);
        assert_eq!(base, catalog(&format!("{b}, {a}"), 9));
        assert_ne!(base, catalog(a, 9));
        assert_ne!(base, catalog(&format!("{a}, {b}"), 10));
        assert_eq!(
            version(&default_catalog()),
            "89297f8461124de7",
            "clients compare versions, so the version must change only with the content"
        );
    }
}
