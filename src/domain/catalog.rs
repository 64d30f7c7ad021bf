//! The catalog: items, recipes and layouts. Immutable; the constructor validates every rule and reports all problems.

use super::ids::{Count, ItemCode, LayoutId, NameError};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Maximum number of slots in a layout; bounds the size of a frame.
pub const LAYOUT_SLOTS_MAX: usize = 1024;
/// Maximum number of items in one stack or one request, enforced where catalogs and requests are parsed. Negative
/// numbers from languages without unsigned integers exceed it.
pub const COUNT_MAX: u32 = i32::MAX as u32;
/// Maximum length of the id of an item or recipe, or of the name of a section, in bytes.
const CATALOG_NAME_BYTES_MAX: usize = 64;
/// Maximum number of items in a catalog. A store remembers every item code that it has seen; this bounds how many codes
/// one catalog can add.
const ITEMS_MAX: usize = 65_536;

/// An item type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: Arc<str>,
    pub code: ItemCode,
    pub max_stack: Count,
    /// The previous id of the item with this code, if the item was renamed.
    pub renamed_from: Option<Arc<str>>,
}

/// A recipe: one craft consumes the inputs and produces the outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub id: Arc<str>,
    pub inputs: Vec<(ItemCode, Count)>,
    pub outputs: Vec<(ItemCode, Count)>,
}

/// Consecutive slots of a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub name: Arc<str>,
    pub slots: u16,
}

/// The slots of an inventory: sections in order, with slots numbered from 0 across all sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub id: LayoutId,
    pub sections: Vec<Section>,
}

impl Layout {
    /// Returns the number of slots in all sections.
    pub fn slots(&self) -> usize {
        self.sections.iter().map(|section| usize::from(section.slots)).sum()
    }
}

/// All items, recipes and layouts, indexed by id and by item code.
#[derive(Debug, Clone)]
pub struct Catalog {
    items: Vec<Item>,
    recipes: Vec<Arc<Recipe>>,
    layouts: BTreeMap<LayoutId, Layout>,
    item_by_id: HashMap<Arc<str>, usize>,
    item_by_code: HashMap<ItemCode, usize>,
    recipe_by_id: HashMap<Arc<str>, Arc<Recipe>>,
}

/// The catalog as read from a file, before validation.
#[derive(Debug, Clone, Default)]
pub struct CatalogSource {
    /// Id, code and max_stack of each item.
    pub items: Vec<(String, u32, u32)>,
    pub recipes: Vec<RecipeSource>,
    /// Id of each layout, with the name and number of slots of its sections.
    pub layouts: Vec<(String, Vec<(String, u64)>)>,
}

/// A recipe as read from a file, before validation.
#[derive(Debug, Clone, Default)]
pub struct RecipeSource {
    pub id: String,
    pub inputs: Vec<(String, u32)>,
    pub outputs: Vec<(String, u32)>,
}

impl Catalog {
    /// Validates and builds the catalog.
    ///
    /// # Errors
    ///
    /// All problems of the catalog, one line for each.
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

    /// Records renamed items, as pairs of the current id and the previous id. Ignores ids that are not in the catalog.
    #[must_use]
    pub fn with_renamed<'a>(mut self, renamed: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        for (id, before) in renamed {
            if let Some(index) = self.item_by_id.get(id) {
                self.items[*index].renamed_from = Some(before.into());
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

    /// Returns the item with this code, or `None` if it was removed from the catalog; inventories keep its stacks.
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

/// Returns why a text is not valid as the id of an item or recipe or as the name of a section; `None` if it is valid.
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

fn check_name(kind: &str, name: &str, problems: &mut Vec<String>) {
    if let Some(error) = catalog_name_error(name) {
        problems.push(format!("{kind} {name:?}: id {error}"));
    }
}

fn check_items(source: &CatalogSource, problems: &mut Vec<String>) -> Vec<Item> {
    let (mut ids, mut codes) = (HashSet::new(), HashSet::new());
    let mut items = Vec::new();
    if source.items.len() > ITEMS_MAX {
        problems.push(format!("items: must contain at most {ITEMS_MAX} items, got {}", source.items.len()));
    }
    for (id, code, max_stack) in &source.items {
        check_name("item", id, problems);
        if !ids.insert(id) {
            problems.push(format!("item {id:?}: duplicate id"));
        }
        if !codes.insert(code) {
            problems.push(format!("item {id:?}: code {code} is used by another item"));
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
            problems.push(format!("recipe {:?}: duplicate id", recipe.id));
        }
        if recipe.inputs.is_empty() && recipe.outputs.is_empty() {
            problems.push(format!("recipe {:?}: must have inputs or outputs", recipe.id));
        }
        let mut check_quantities = |quantities: &[(String, u32)]| {
            let mut checked = Vec::new();
            for (item, count) in quantities {
                match (code(item), Count::new(*count)) {
                    (Some(code), Some(count)) => checked.push((code, count)),
                    (None, _) => problems.push(format!("recipe {:?}: unknown item {item:?}", recipe.id)),
                    (_, None) => problems.push(format!("recipe {:?}: count of item {item:?} must not be 0", recipe.id)),
                }
            }
            checked
        };
        let (inputs, outputs) = (check_quantities(&recipe.inputs), check_quantities(&recipe.outputs));
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
                problems.push(format!("layout {name:?}: id {error}"));
                continue;
            }
        };
        let total: u64 = sections.iter().fold(0, |sum, (_, slots)| sum.saturating_add(*slots));
        if total == 0 || total > LAYOUT_SLOTS_MAX as u64 {
            problems.push(format!("layout {name:?}: must have 1 to {LAYOUT_SLOTS_MAX} slots, got {total}"));
            continue;
        }
        let mut checked = Vec::new();
        for (section, slots) in sections {
            if let Some(error) = catalog_name_error(section) {
                problems.push(format!("layout {name:?}: section name {section:?} {error}"));
            }
            // A section cannot have more slots than the layout, whose total was just checked.
            let slots = u16::try_from(*slots).unwrap_or_default();
            checked.push(Section { name: section.as_str().into(), slots });
        }
        if layouts.insert(id.clone(), Layout { id, sections: checked }).is_some() {
            problems.push(format!("layout {name:?}: duplicate id"));
        }
    }
    layouts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_of_a_catalog_are_reported_at_once() {
        let source = CatalogSource {
            items: vec![("a".into(), 1, 64), ("a".into(), 1, 0), ("b".into(), 0, 1)],
            recipes: vec![RecipeSource { id: "r".into(), inputs: vec![("zinc".into(), 1)], outputs: vec![] }],
            layouts: vec![
                ("huge".into(), vec![("all".into(), 1025)]),
                ("unnamed".into(), vec![(String::new(), 1)]),
                ("none".into(), vec![]),
            ],
        };
        let problems = Catalog::new(source).expect_err("the catalog is invalid");
        assert_eq!(
            problems,
            [
                "item \"a\": duplicate id",
                "item \"a\": code 1 is used by another item",
                "item \"a\": max_stack must not be 0",
                "item \"b\": code must not be 0",
                "recipe \"r\": unknown item \"zinc\"",
                "layout \"huge\": must have 1 to 1024 slots, got 1025",
                "layout \"unnamed\": section name \"\" must not be empty",
                "layout \"none\": must have 1 to 1024 slots, got 0",
            ]
        );
    }
}
