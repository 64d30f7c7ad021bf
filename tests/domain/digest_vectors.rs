//! The published test vectors of the digest. `tests/python/digest.py` computed the expected values independently.

use serde::Deserialize;
use slotcast::domain::{Attributes, Contents, Count, Edit, ItemCode, Revision, Slot, Stack};

const VECTORS: &str = include_str!("../vectors/digest.json");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    slots: Vec<FilledSlot>,
    expected: Expected,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilledSlot {
    slot: u16,
    item_code: u32,
    count: u32,
    #[serde(default)]
    attributes_hex: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    a: u32,
    b: u32,
    folded: u32,
}

impl FilledSlot {
    fn edit(&self) -> Edit {
        let digits = self.attributes_hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        let bytes: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
        let stack = Stack {
            item: ItemCode::new(self.item_code).unwrap(),
            count: Count::new(self.count).unwrap(),
            attributes: Attributes::new(&bytes).unwrap(),
        };
        (Slot(self.slot), Some(stack))
    }
}

#[test]
fn digests_match_the_published_vectors() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    assert!(vectors.len() >= 16);
    for Vector { name, slots, expected } in &vectors {
        let edits: Vec<_> = slots.iter().map(FilledSlot::edit).collect();
        // Replaces other content slot by slot, so that the test covers the incremental update of the digest.
        let one = |stack: &Stack| stack.with_count(1);
        let other: Vec<_> = edits.iter().map(|(slot, stack)| (*slot, stack.as_ref().and_then(one))).collect();
        let mut contents = Contents::new(1_024, Revision::CREATED, &other);
        for edit in edits {
            contents = contents.advanced(contents.revision().next(), &[edit]);
        }
        let digest = contents.digest();
        assert_eq!((digest.a, digest.b, digest.to_u32()), (expected.a, expected.b, expected.folded), "{name}");
    }
}

#[test]
fn the_vectors_include_the_starter_kit() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    let kit = vectors.iter().find(|vector| vector.name == "the player's starter kit").unwrap();
    assert_eq!(kit.slots.len(), 33);
}
