//! Reads the catalog from the wire, so that the client library predicts with the rules that the server applies.

use crate::domain::catalog::{Catalog, CatalogSource, RecipeSource};
use crate::wire::v1;
use std::collections::HashMap;

/// Returns the catalog of a reply, validated like a catalog from a file.
///
/// # Errors
///
/// Every problem of the catalog, one sentence each.
pub fn decode_catalog(reply: &v1::GetCatalogResponse) -> Result<Catalog, Vec<String>> {
    let ids: HashMap<u32, &str> = reply.items.iter().map(|item| (item.code, item.id.as_str())).collect();
    // A code without an item is reported by its number, as an unknown item.
    let id = |code: u32| ids.get(&code).map_or_else(|| format!("code {code}"), |id| (*id).to_owned());
    let side = |parts: &[v1::Ingredient]| parts.iter().map(|part| (id(part.item_code), part.count)).collect();
    let recipe = |recipe: &v1::Recipe| RecipeSource {
        id: recipe.id.clone(),
        inputs: side(&recipe.inputs),
        outputs: side(&recipe.outputs),
    };
    let layout = |layout: &v1::Layout| {
        let sections = layout.sections.iter().map(|section| (section.name.clone(), u64::from(section.slots)));
        (layout.id.clone(), sections.collect())
    };
    Catalog::new(CatalogSource {
        items: reply.items.iter().map(|item| (item.id.clone(), item.code, item.max_stack)).collect(),
        recipes: reply.recipes.iter().map(recipe).collect(),
        layouts: reply.layouts.iter().map(layout).collect(),
    })
}
