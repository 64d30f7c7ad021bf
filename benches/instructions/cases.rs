//! The cases without a server: rules, frames, digest and store.

use crate::counts::count;
use crate::fixtures::{self, SLOTS, added_item, stack};
use prost::Message;
use slotcast::domain::{
    Attributes, Count, Digest, Epoch, Inventory, InventoryId, InventoryLookup, Mutation, Operation, Slot, apply,
};
use slotcast::store::{MutationRecord, Store};
use slotcast::sync::{Cursor, Frame, InventoryFrame, frame_since};
use slotcast::wire::frame::{decode_frame, encode_frame};
use slotcast::wire::frame_bytes;
use slotcast::wire::v1;
use std::hint::black_box;
use std::sync::Arc;

const WARM_UP: usize = 20;
const REPETITIONS: usize = 200;
/// Maximum number of slots of a delta, as by default.
const DELTA_SLOTS_MAX: usize = 36;
const BATCH: usize = 128;
const BATCHES: usize = 8;

struct OneInventory(Arc<Inventory>);

impl InventoryLookup for OneInventory {
    fn inventory(&self, _: &InventoryId) -> Option<Arc<Inventory>> {
        Some(self.0.clone())
    }
}

pub fn run() {
    apply_add();
    frames();
    digest();
    commit();
}

fn apply_add() {
    let (catalog, view) = (fixtures::catalog(), OneInventory(fixtures::inventory(0)));
    let operation = Operation::Add {
        id: fixtures::id(0),
        item: added_item(),
        attributes: Attributes::NONE,
        count: Count::new(1).expect("not 0"),
        allow_partial: false,
    };
    let mutation = Mutation { operations: vec![operation], expected: vec![] };
    let mut new_epoch = || Epoch::new(9).expect("not 0");
    count("apply AddItem to 36 slots", WARM_UP, REPETITIONS, |_| {
        black_box(apply(black_box(&mutation), &catalog, &view, &mut new_epoch)).expect("the item fits");
    });
}

/// A delta of one slot and a full frame, from the difference to the decoded message.
fn frames() {
    let before = fixtures::inventory(0);
    let after = before.advanced(&[(Slot(3), Some(stack(added_item(), 5)))]);
    let cursor = Cursor::of(&before);
    for (kind, cursor) in [("delta", Some(cursor)), ("full frame", None)] {
        count(&format!("diff: {kind}"), WARM_UP, REPETITIONS, |_| {
            black_box(frame_since(black_box(&after), cursor, DELTA_SLOTS_MAX));
        });
        let part = frame_since(&after, cursor, DELTA_SLOTS_MAX).expect("the cursor is older");
        encode_and_decode(kind, &before, part);
    }
}

fn encode_and_decode(kind: &str, before: &Inventory, part: InventoryFrame) {
    let frame = Frame { changed: vec![(0, part)], ..Frame::default() };
    count(&format!("encode: {kind}"), WARM_UP, REPETITIONS, |_| {
        black_box(frame_bytes::encode(black_box(&frame)));
    });
    let bytes = encode_frame(&frame).encode_to_vec();
    let (ids, revision) = ([before.id.clone()], before.contents.revision());
    count(&format!("decode: {kind}"), WARM_UP, REPETITIONS, |_| {
        let message = v1::SubscribeInventoryResponse::decode(black_box(&*bytes)).expect("a valid message");
        black_box(decode_frame(&message, &ids, |_| Some(revision)));
    });
}

fn digest() {
    let inventory = fixtures::inventory(0);
    count("digest of 36 slots", WARM_UP, REPETITIONS, |_| {
        let slots = black_box(&inventory).contents.slots().iter().zip(0..SLOTS as u16);
        let digest = slots.fold(Digest::EMPTY, |digest, (state, slot)| digest.plus(Slot(slot), state.stack.as_ref()));
        assert_eq!(black_box(digest), inventory.contents.digest());
    });
}

fn commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = fixtures::store(folder.path(), BATCH);
    let mut states: Vec<_> = (0..BATCH).map(fixtures::inventory).collect();
    let mut batch = || (0..BATCH).map(|number| fixtures::change(&mut states, number)).collect();
    let batches: Vec<Vec<MutationRecord>> = (0..2 * BATCHES).map(|_| batch()).collect();
    count("commit of 128 records", BATCHES, BATCHES, |number| {
        store.commit(&batches[number]).expect("the batch commits");
    });
}
