//! Reads the catalog from the wire, so that the client library predicts with the rules that the service applies.

use crate::domain::catalog::{Catalog, CatalogSource, RecipeSource};
use crate::grpc::v1;
use std::collections::HashMap;

/// Returns the catalog of a reply, validated like a catalog from a file.
///
/// # Errors
///
/// Every problem of the catalog, one sentence each.
pub fn read(reply: &v1::GetCatalogResponse) -> Result<Catalog, Vec<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog_file::default_catalog;
    use crate::grpc::convert::reply;

    #[test]
    fn a_catalog_survives_the_wire() {
        let sent = default_catalog();
        let received = read(&reply::catalog(&sent, "1")).unwrap();
        assert_eq!(received.items(), sent.items());
        assert_eq!(received.recipes(), sent.recipes());
        assert!(received.layouts().eq(sent.layouts()));
    }

    #[test]
    fn a_recipe_of_an_item_that_is_not_there_is_told() {
        let mut reply = reply::catalog(&default_catalog(), "1");
        reply.recipes[0].inputs[0].item_code = 999;
        assert_eq!(read(&reply).unwrap_err(), ["recipe \"oak_planks\": unknown item \"code 999\""]);
    }
}
