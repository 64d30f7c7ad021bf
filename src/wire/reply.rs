//! Converts domain values to replies.

use crate::domain::{Catalog, Digest, Inventory, ItemCode, OperationOutcome, Stack, Version};
use crate::wire::v1;

pub fn version(version: &Version) -> v1::InventoryVersion {
    v1::InventoryVersion {
        inventory_id: version.id.to_string(),
        epoch: version.epoch.get(),
        revision: version.revision.0,
        digest: Some(digest(version.digest)),
    }
}

pub fn digest(digest: Digest) -> v1::Digest {
    v1::Digest { a: digest.a, b: digest.b }
}

pub fn stack(catalog: &Catalog, stack: &Stack) -> v1::Stack {
    v1::Stack {
        item: catalog.item_by_code(stack.item).map(|item| item.id.to_string()).unwrap_or_default(),
        item_code: stack.item.get(),
        count: stack.count.get(),
        attributes: stack.attributes.as_bytes().to_vec(),
    }
}

pub fn outcome(catalog: &Catalog, outcome: &OperationOutcome) -> v1::OperationOutcome {
    v1::OperationOutcome {
        count: outcome.count,
        remainder: outcome.remainder,
        stack: outcome.stack.as_ref().map(|left| stack(catalog, left)),
    }
}

pub fn inventory(catalog: &Catalog, inventory: &Inventory) -> v1::Inventory {
    let stacks = inventory
        .contents
        .stacks()
        .map(|(slot, held)| v1::SlotStack { slot: u32::from(slot.0), stack: Some(stack(catalog, held)) });
    v1::Inventory {
        version: Some(version(&inventory.version())),
        owner: owner(inventory),
        layout: inventory.layout.to_string(),
        slots: inventory.contents.slots().len() as u32,
        stacks: stacks.collect(),
    }
}

pub fn summary(inventory: &Inventory) -> v1::InventorySummary {
    v1::InventorySummary {
        version: Some(version(&inventory.version())),
        owner: owner(inventory),
        layout: inventory.layout.to_string(),
    }
}

fn owner(inventory: &Inventory) -> String {
    inventory.owner.as_ref().map(ToString::to_string).unwrap_or_default()
}

pub fn catalog(catalog: &Catalog, version: &str) -> v1::GetCatalogResponse {
    let items = catalog.items().iter().map(|item| v1::Item {
        id: item.id.to_string(),
        code: item.code.get(),
        max_stack: item.max_stack.get(),
    });
    let recipes = catalog.recipes().iter().map(|recipe| v1::Recipe {
        id: recipe.id.to_string(),
        inputs: ingredients(&recipe.inputs),
        outputs: ingredients(&recipe.outputs),
    });
    let layouts = catalog.layouts().map(|layout| v1::Layout {
        id: layout.id.to_string(),
        sections: layout
            .sections
            .iter()
            .map(|section| v1::Section { name: section.name.to_string(), slots: u32::from(section.slots) })
            .collect(),
    });
    v1::GetCatalogResponse {
        version: version.to_owned(),
        items: items.collect(),
        recipes: recipes.collect(),
        layouts: layouts.collect(),
    }
}

fn ingredients(parts: &[(ItemCode, crate::domain::Count)]) -> Vec<v1::Ingredient> {
    parts.iter().map(|(item, count)| v1::Ingredient { item_code: item.get(), count: count.get() }).collect()
}
