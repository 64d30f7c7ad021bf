//! The catalog: items, recipes and layouts. Immutable once built; building checks every rule and reports all problems.

use super::ids::{Count, ItemCode, LayoutId, NameError, Slot};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// The most slots a layout may have; it bounds the size of a frame.
pub const LAYOUT_SLOTS_MAX: usize = 1024;
/// The most items of one stack or of one request, held to where catalogs and requests come in. What a language without
/// unsigned numbers sends as negative lies above it.
pub const COUNT_MAX: u32 = i32::MAX as u32;
/// The longest id of an item, recipe or section, in bytes.
pub const CATALOG_NAME_BYTES_MAX: usize = 64;
/// The most items of a catalog. A store remembers every code that it has seen, so this bounds what one catalog adds.
pub const ITEMS_MAX: usize = 65_536;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: Arc<str>,
    pub code: ItemCode,
    pub max_stack: Count,
    /// The id that this item, with this code, had before.
    pub renamed_from: Option<Arc<str>>,
}

/// Inputs out, outputs in, `times` times over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub id: Arc<str>,
    pub inputs: Vec<(ItemCode, Count)>,
    pub outputs: Vec<(ItemCode, Count)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub name: Arc<str>,
    pub slots: u16,
}

/// Sections in order; slots are numbered through them from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub id: LayoutId,
    pub sections: Vec<Section>,
}

impl Layout {
    pub fn slots(&self) -> usize {
        self.sections.iter().map(|section| usize::from(section.slots)).sum()
    }

    /// Each section with its first slot.
    pub fn sections_with_first_slot(&self) -> impl Iterator<Item = (&Section, Slot)> {
        let mut first = 0;
        self.sections.iter().map(move |section| {
            let slot = Slot(first);
            first += section.slots;
            (section, slot)
        })
    }
}

#[derive(Debug, Clone)]
pub struct Catalog {
    items: Vec<Item>,
    recipes: Vec<Arc<Recipe>>,
    layouts: BTreeMap<LayoutId, Layout>,
    item_by_id: HashMap<Arc<str>, usize>,
    item_by_code: HashMap<ItemCode, usize>,
    recipe_by_id: HashMap<Arc<str>, Arc<Recipe>>,
}

/// The catalog as a file states it, before any check.
#[derive(Debug, Clone, Default)]
pub struct CatalogSource {
    pub items: Vec<(String, u32, u32)>,
    pub recipes: Vec<RecipeSource>,
    pub layouts: Vec<(String, Vec<(String, u64)>)>,
}

#[derive(Debug, Clone, Default)]
pub struct RecipeSource {
    pub id: String,
    pub inputs: Vec<(String, u32)>,
    pub outputs: Vec<(String, u32)>,
}

impl Catalog {
    /// Builds the catalog, or lists everything that is wrong with it, a sentence each.
    pub fn new(source: CatalogSource) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let items = check_items(&source, &mut problems);
        let item_by_id: HashMap<_, _> = items.iter().enumerate().map(|(i, item)| (item.id.clone(), i)).collect();
        let item_by_code = items.iter().enumerate().map(|(i, item)| (item.code, i)).collect();
        let code = |id: &str| item_by_id.get(id).map(|i| items[*i].code);
        let recipes = check_recipes(&source, &code, &mut problems);
        let layouts = check_layouts(&source, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let recipe_by_id = recipes.iter().map(|recipe| (recipe.id.clone(), recipe.clone())).collect();
        Ok(Self { items, recipes, layouts, item_by_id, item_by_code, recipe_by_id })
    }

    /// States which items were renamed, as pairs of the id now and the id before. Ids of no item are left out.
    #[must_use]
    pub fn with_renamed<'a>(mut self, renamed: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        for (id, before) in renamed {
            if let Some(at) = self.item_by_id.get(id) {
                self.items[*at].renamed_from = Some(before.into());
            }
        }
        self
    }

    pub fn items(&self) -> &[Item] {
        &self.items
    }

    pub fn recipes(&self) -> &[Arc<Recipe>] {
        &self.recipes
    }

    pub fn layouts(&self) -> impl Iterator<Item = &Layout> {
        self.layouts.values()
    }

    pub fn item(&self, id: &str) -> Option<&Item> {
        self.item_by_id.get(id).map(|i| &self.items[*i])
    }

    /// None for an item that has left the catalog; stacks of it are kept.
    pub fn item_by_code(&self, code: ItemCode) -> Option<&Item> {
        self.item_by_code.get(&code).map(|i| &self.items[*i])
    }

    pub fn recipe(&self, id: &str) -> Option<&Arc<Recipe>> {
        self.recipe_by_id.get(id)
    }

    pub fn layout(&self, id: &LayoutId) -> Option<&Layout> {
        self.layouts.get(id)
    }
}

/// Why a text cannot be the id of an item or recipe, or the name of a section.
pub fn catalog_name_error(name: &str) -> Option<NameError> {
    if name.is_empty() {
        Some(NameError::Empty)
    } else if name.len() > CATALOG_NAME_BYTES_MAX {
        Some(NameError::TooLong { bytes_max: CATALOG_NAME_BYTES_MAX })
    } else if name.chars().any(char::is_control) {
        Some(NameError::ControlCharacter)
    } else {
        None
    }
}

fn check_name(what: &str, name: &str, problems: &mut Vec<String>) {
    if let Some(error) = catalog_name_error(name) {
        problems.push(format!("{what} {name:?}: its id {error}"));
    }
}

fn check_items(source: &CatalogSource, problems: &mut Vec<String>) -> Vec<Item> {
    let (mut ids, mut codes) = (HashSet::new(), HashSet::new());
    let mut items = Vec::new();
    if source.items.len() > ITEMS_MAX {
        problems.push(format!("it has {} items; at most {ITEMS_MAX} are possible", source.items.len()));
    }
    for (id, code, max_stack) in &source.items {
        check_name("item", id, problems);
        if !ids.insert(id) {
            problems.push(format!("item {id:?} stands twice"));
        }
        if !codes.insert(code) {
            problems.push(format!("item {id:?}: code {code} is another item's"));
        }
        match (ItemCode::new(*code), Count::new(*max_stack)) {
            (Some(code), Some(max_stack)) => {
                items.push(Item { id: id.as_str().into(), code, max_stack, renamed_from: None });
            }
            (None, _) => problems.push(format!("item {id:?}: code must not be 0")),
            (_, None) => problems.push(format!("item {id:?}: max_stack must not be 0")),
        }
    }
    items
}

fn check_recipes(
    source: &CatalogSource,
    code: &impl Fn(&str) -> Option<ItemCode>,
    problems: &mut Vec<String>,
) -> Vec<Arc<Recipe>> {
    let mut ids = HashSet::new();
    let mut recipes = Vec::new();
    for recipe in &source.recipes {
        check_name("recipe", &recipe.id, problems);
        if !ids.insert(&recipe.id) {
            problems.push(format!("recipe {:?} stands twice", recipe.id));
        }
        if recipe.inputs.is_empty() && recipe.outputs.is_empty() {
            problems.push(format!("recipe {:?} has neither inputs nor outputs", recipe.id));
        }
        let mut side = |parts: &[(String, u32)]| {
            let mut known = Vec::new();
            for (item, count) in parts {
                match (code(item), Count::new(*count)) {
                    (Some(code), Some(count)) => known.push((code, count)),
                    (None, _) => problems.push(format!("recipe {:?}: no item {item:?}", recipe.id)),
                    (_, None) => problems.push(format!("recipe {:?}: 0 of {item:?}", recipe.id)),
                }
            }
            known
        };
        let (inputs, outputs) = (side(&recipe.inputs), side(&recipe.outputs));
        recipes.push(Arc::new(Recipe { id: recipe.id.as_str().into(), inputs, outputs }));
    }
    recipes
}

fn check_layouts(source: &CatalogSource, problems: &mut Vec<String>) -> BTreeMap<LayoutId, Layout> {
    let mut layouts = BTreeMap::new();
    for (name, sections) in &source.layouts {
        let id = match LayoutId::new(name) {
            Ok(id) => id,
            Err(error) => {
                problems.push(format!("layout {name:?}: its id {error}"));
                continue;
            }
        };
        let total: u64 = sections.iter().fold(0, |sum, (_, slots)| sum.saturating_add(*slots));
        if total == 0 || total > LAYOUT_SLOTS_MAX as u64 {
            problems.push(format!("layout {name:?} has {total} slots; 1 to {LAYOUT_SLOTS_MAX} are possible"));
            continue;
        }
        let mut checked = Vec::new();
        for (section, slots) in sections {
            check_name("section", section, problems);
            // No section can have more slots than the layout, which was just checked.
            let slots = u16::try_from(*slots).unwrap_or_default();
            checked.push(Section { name: section.as_str().into(), slots });
        }
        if layouts.insert(id.clone(), Layout { id, sections: checked }).is_some() {
            problems.push(format!("layout {name:?} stands twice"));
        }
    }
    layouts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_a_catalog_is_told_at_once() {
        let source = CatalogSource {
            items: vec![("a".into(), 1, 64), ("a".into(), 1, 0), ("b".into(), 0, 1)],
            recipes: vec![RecipeSource { id: "r".into(), inputs: vec![("zinc".into(), 1)], outputs: vec![] }],
            layouts: vec![("huge".into(), vec![("all".into(), 1025)]), ("none".into(), vec![])],
        };
        let problems = Catalog::new(source).expect_err("it is wrong in many ways");
        assert_eq!(
            problems,
            [
                "item \"a\" stands twice",
                "item \"a\": code 1 is another item's",
                "item \"a\": max_stack must not be 0",
                "item \"b\": code must not be 0",
                "recipe \"r\": no item \"zinc\"",
                "layout \"huge\" has 1025 slots; 1 to 1024 are possible",
                "layout \"none\" has 0 slots; 1 to 1024 are possible",
            ]
        );
    }
}
