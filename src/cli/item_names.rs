//! The names of items in the output of commands that need no catalog: the store knows the id of each item code.

use crate::domain::{Attributes, ItemCode, Stack};
use crate::store::StoreError;
use crate::store::embedded::tools::Snapshot;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Attributes that are longer are shortened in text, in bytes.
const ATTRIBUTES_SHOWN_MAX: usize = 24;

/// The ids of items by code.
#[derive(Debug, Default)]
pub struct ItemNames(BTreeMap<ItemCode, String>);

impl ItemNames {
    pub fn read(snapshot: &Snapshot) -> Result<Self, StoreError> {
        snapshot.item_ids().map(Self)
    }

    /// Finds an item by its id, or by its code.
    pub fn find(&self, item: &str) -> Result<ItemCode, String> {
        let by_id = self.0.iter().find(|(_, id)| *id == item).map(|(code, _)| *code);
        let by_code = || item.parse().ok().and_then(ItemCode::new);
        by_id.or_else(by_code).ok_or_else(|| {
            format!("unknown item {item:?}: no catalog of this store has contained it (use an item's id or code)")
        })
    }

    /// Returns the id of an item, or its code if the id is not known.
    pub fn text(&self, code: ItemCode) -> String {
        self.0.get(&code).cloned().unwrap_or_else(|| format!("item code {}", code.get()))
    }

    /// Returns the id of an item as a string, or its code as a number if the id is not known.
    pub fn json(&self, code: ItemCode) -> Value {
        self.0.get(&code).map_or_else(|| code.get().into(), |id| id.as_str().into())
    }

    /// Describes a stack, such as `5 apple`.
    pub fn stack_text(&self, stack: &Stack) -> String {
        let (count, item) = (stack.count.get(), self.text(stack.item));
        match stack.attributes.as_bytes() {
            [] => format!("{count} {item}"),
            attributes if attributes.len() <= ATTRIBUTES_SHOWN_MAX => {
                format!("{count} {item} (attributes {})", STANDARD.encode(attributes))
            }
            attributes => {
                let start = STANDARD.encode(&attributes[..ATTRIBUTES_SHOWN_MAX]);
                format!("{count} {item} (attributes {start}..., {} bytes)", attributes.len())
            }
        }
    }

    pub fn stack_json(&self, stack: &Stack) -> Value {
        let mut value = json!({"item": self.json(stack.item), "count": stack.count.get()});
        if stack.attributes != Attributes::NONE {
            value["attributes"] = STANDARD.encode(stack.attributes.as_bytes()).into();
        }
        value
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::domain::Count;

    pub fn code(code: u32) -> ItemCode {
        ItemCode::new(code).expect("not 0")
    }

    pub fn stack(item: u32, count: u32, attributes: &[u8]) -> Stack {
        let attributes = Attributes::new(attributes).expect("few bytes");
        Stack { item: code(item), count: Count::new(count).expect("not 0"), attributes }
    }

    pub fn names() -> ItemNames {
        ItemNames([(code(1), "apple".to_owned()), (code(2), "9".to_owned())].into())
    }

    #[test]
    fn an_item_is_found_by_its_id_first_and_then_by_its_code() {
        let names = names();
        assert_eq!(names.find("apple"), Ok(code(1)));
        assert_eq!(names.find("9"), Ok(code(2)), "an id that looks like a code");
        assert_eq!(names.find("77"), Ok(code(77)));
        assert!(names.find("pear").is_err() && names.find("0").is_err());
    }

    #[test]
    fn an_item_without_a_known_id_is_named_by_its_code() {
        let names = names();
        assert_eq!(names.stack_text(&stack(1, 5, b"")), "5 apple");
        assert_eq!(names.stack_text(&stack(77, 1, b"sharp")), "1 item code 77 (attributes c2hhcnA=)");
        let long = names.stack_text(&stack(1, 1, &[0; 100]));
        assert_eq!(long, "1 apple (attributes AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA..., 100 bytes)");
        assert_eq!(
            names.stack_json(&stack(77, 1, b"sharp")),
            json!({"item": 77, "count": 1, "attributes": "c2hhcnA="})
        );
        assert_eq!(names.stack_json(&stack(1, 5, b"")), json!({"item": "apple", "count": 5}));
    }
}
