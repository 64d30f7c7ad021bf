//! Invalid input of any shape gets a clear status and changes nothing.

use crate::common::{
    ErrorSummary, TestServer, add, craft, drop, error_of, immediate, invalid, move_item, precondition, quantity,
    remove, set, slot_stack, stack, transfer, with_key,
};
use crate::raw::{self, field, minus_one};
use slotcast::client::new_mutation_context;
use slotcast::wire::v1;
use slotcast::wire::v1::operation::Operation;
use tonic::Code;

/// Starts a server with a chest `a` that has a few items, and an empty chest `b`.
async fn world() -> TestServer {
    let server = TestServer::start(immediate()).await;
    server.create("a", "chest", &[(0, "stone", 60), (1, "coal", 2)]).await;
    server.create("b", "chest", &[]).await;
    server
}

/// Asserts that each operation gets its error, alone and in a transaction, and that nothing changes.
async fn assert_all_rejected(server: &TestServer, cases: Vec<(Operation, ErrorSummary)>) {
    let before = (server.get("a").await, server.get("b").await, server.store.commits());
    for (operation, expected) in cases {
        let status = server.mutate(operation.clone()).await.unwrap_err();
        assert_eq!(error_of(&status), expected, "{operation:?}");
        let status = server.transact(vec![operation.clone()]).await.unwrap_err();
        let (code, reason, _) = error_of(&status);
        assert_eq!((code, &reason), (expected.0, &expected.1), "{operation:?}");
    }
    let after = (server.get("a").await, server.get("b").await, server.store.commits());
    assert_eq!(before, after, "a refusal changes nothing");
}

#[tokio::test]
async fn case_01_a_count_of_0_is_rejected_in_every_field() {
    let cases = vec![
        (add("a", "stone", 0), invalid("INVALID_ARGUMENT", "add.stack.count")),
        (remove("a", "stone", 0), invalid("INVALID_ARGUMENT", "remove.item.count")),
        (move_item("a", 0, 5, Some(0)), invalid("INVALID_ARGUMENT", "move.from.count")),
        (drop("a", 0, Some(0)), invalid("INVALID_ARGUMENT", "drop.from.count")),
        (craft("a", "torch", 0), invalid("INVALID_ARGUMENT", "craft.times")),
        (transfer("a", "b", "stone", 0), invalid("INVALID_ARGUMENT", "transfer.item.count")),
        (set("a", 0, Some(stack("stone", 0))), invalid("INVALID_ARGUMENT", "set.stack.count")),
    ];
    assert_all_rejected(&world().await, cases).await;
}

#[tokio::test]
async fn case_02_maximum_and_negative_numbers_are_rejected() {
    let server = world().await;
    let max = u32::MAX;
    let cases = vec![
        (add("a", "stone", max), invalid("INVALID_ARGUMENT", "add.stack.count")),
        (remove("a", "stone", max), invalid("INVALID_ARGUMENT", "remove.item.count")),
        (move_item("a", 0, 5, Some(max)), invalid("INVALID_ARGUMENT", "move.from.count")),
        (drop("a", 0, Some(max)), invalid("INVALID_ARGUMENT", "drop.from.count")),
        (craft("a", "torch", max), invalid("INVALID_ARGUMENT", "craft.times")),
        (transfer("a", "b", "stone", max), invalid("INVALID_ARGUMENT", "transfer.item.count")),
        (set("a", 0, Some(stack("stone", max))), invalid("INVALID_ARGUMENT", "set.stack.count")),
    ];
    assert_all_rejected(&server, cases).await;

    // A language without unsigned numbers encodes -1 as ten bytes, of which a uint32 keeps the lower four.
    let context = field(1, &field(1, b"a-key"));
    let negative_count = field(3, &[field(1, b"stone"), minus_one(3)].concat());
    let message = [context.clone(), field(2, &[field(1, b"a"), field(2, &negative_count[2..])].concat())].concat();
    let status = raw::send(&server.client, "AddItem", message).await.unwrap_err();
    assert_eq!(error_of(&status), invalid("INVALID_ARGUMENT", "add.stack.count"));
    let message = [context, field(2, &[field(1, b"a"), field(2, &minus_one(1))].concat())].concat();
    let status = raw::send(&server.client, "DropItem", message).await.unwrap_err();
    assert_eq!(error_of(&status), invalid("SLOT_OUT_OF_RANGE", "drop.from.slot"));
    assert_eq!(server.version("a").await.revision, 1);
}

#[tokio::test]
async fn case_04_an_unknown_item_recipe_or_layout_is_rejected() {
    let server = world().await;
    let by_code = v1::Stack { item_code: 9_999, count: 1, ..v1::Stack::default() };
    let both = v1::Stack { item: "stone".into(), item_code: 11, count: 1, ..v1::Stack::default() };
    let create =
        v1::CreateInventory { inventory_id: "c".into(), layout: "barrel".into(), ..v1::CreateInventory::default() };
    let cases = vec![
        (add("a", "zinc", 1), invalid("UNKNOWN_ITEM", "add.stack.item")),
        (add("a", "", 1), invalid("UNKNOWN_ITEM", "add.stack.item")),
        (set("a", 0, Some(both)), invalid("UNKNOWN_ITEM", "set.stack.item")),
        (set("a", 0, Some(by_code)), invalid("UNKNOWN_ITEM", "item_code")),
        (remove("a", "zinc", 1), invalid("UNKNOWN_ITEM", "remove.item.item")),
        (craft("a", "zinc_ingot", 1), invalid("UNKNOWN_RECIPE", "craft.recipe")),
        (Operation::Create(create), invalid("UNKNOWN_LAYOUT", "create.layout")),
    ];
    assert_all_rejected(&server, cases).await;
}

#[tokio::test]
async fn case_06_a_slot_out_of_range_is_rejected() {
    let stacks_in =
        |slot| v1::RearrangeInventory { inventory_id: "a".into(), stacks: vec![slot_stack(slot, "stone", 60)] };
    let mut cases = Vec::new();
    for (slot, edge) in [(27, false), (65_535, false), (65_536, true), (u32::MAX, true)] {
        // The error names the full field for a slot that no inventory can have, the short one for a slot that this
        // layout lacks.
        let refused = |field: &str, short: &str| invalid("SLOT_OUT_OF_RANGE", if edge { field } else { short });
        cases.extend([
            (move_item("a", slot, 0, None), refused("move.from.slot", "slot")),
            (move_item("a", 0, slot, None), refused("move.to.slot", "slot")),
            (drop("a", slot, None), refused("drop.from.slot", "slot")),
            (set("a", slot, None), refused("set.at.slot", "slot")),
            (Operation::Rearrange(stacks_in(slot)), refused("rearrange.stacks[0].slot", "slot")),
        ]);
    }
    assert_all_rejected(&world().await, cases).await;
}

#[tokio::test]
async fn case_10_an_add_without_enough_room_is_rejected_or_reports_the_remainder() {
    let server = world().await;
    let add = |allow_partial| {
        let add = v1::AddItem { inventory_id: "b".into(), stack: Some(stack("stone", 2_000)), allow_partial };
        v1::AddItemRequest { context: Some(new_mutation_context()), add: Some(add) }
    };
    let mut rpc = server.client.rpc();
    let status = rpc.add_item(add(false)).await.unwrap_err();
    assert_eq!(error_of(&status), precondition("NO_ROOM"));
    assert_eq!(server.held("b").await, 0);
    let reply = rpc.add_item(add(true)).await.unwrap().into_inner();
    assert_eq!((reply.added, reply.remainder), (27 * 64, 2_000 - 27 * 64));
    assert_eq!(server.held("b").await, 27 * 64);
}

#[tokio::test]
async fn case_14_a_transfer_within_one_inventory_is_rejected() {
    let cases = vec![(transfer("a", "a", "stone", 1), invalid("SAME_INVENTORY", "to_inventory_id"))];
    assert_all_rejected(&world().await, cases).await;
}

#[tokio::test]
async fn case_15_attributes_above_the_size_limit_are_rejected() {
    let server = world().await;
    let with = |bytes: usize| v1::Stack { attributes: vec![7; bytes], ..stack("diamond_axe", 1) };
    let add = Operation::Add(v1::AddItem { inventory_id: "a".into(), stack: Some(with(1_025)), allow_partial: false });
    let cases = vec![
        (add, invalid("INVALID_ARGUMENT", "add.stack.attributes")),
        (set("a", 5, Some(with(1_025))), invalid("INVALID_ARGUMENT", "set.stack.attributes")),
    ];
    assert_all_rejected(&server, cases).await;
    server.mutate(set("a", 5, Some(with(1_024)))).await.unwrap();
}

#[tokio::test]
async fn case_16_a_missing_oneof_is_rejected_with_the_field() {
    let server = world().await;
    let transfer =
        v1::TransferItem { from_inventory_id: "a".into(), to_inventory_id: "b".into(), ..v1::TransferItem::default() };
    let cases = vec![
        (Operation::Transfer(transfer), invalid("INVALID_ARGUMENT", "transfer.from")),
        (
            Operation::Add(v1::AddItem { inventory_id: "a".into(), ..v1::AddItem::default() }),
            invalid("INVALID_ARGUMENT", "add.stack"),
        ),
        (
            Operation::Drop(v1::DropItem { inventory_id: "a".into(), from: None }),
            invalid("INVALID_ARGUMENT", "drop.from"),
        ),
        (
            Operation::Set(v1::SetSlot { inventory_id: "a".into(), ..v1::SetSlot::default() }),
            invalid("INVALID_ARGUMENT", "set.at"),
        ),
    ];
    assert_all_rejected(&server, cases).await;

    let mut rpc = server.client.rpc();
    let request = v1::MoveItemRequest { context: Some(new_mutation_context()), ..v1::MoveItemRequest::default() };
    assert_eq!(error_of(&rpc.move_item(request).await.unwrap_err()), invalid("INVALID_ARGUMENT", "move"));
    let operations = vec![v1::Operation { operation: Some(drop("a", 0, None)) }, v1::Operation::default()];
    let request = v1::TransactRequest { context: Some(new_mutation_context()), operations };
    let status = rpc.transact(request).await.unwrap_err();
    assert_eq!(error_of(&status), invalid("INVALID_ARGUMENT", "operations[1].operation"));
    let none = v1::TransactRequest { context: Some(new_mutation_context()), operations: vec![] };
    assert_eq!(error_of(&rpc.transact(none).await.unwrap_err()), invalid("INVALID_ARGUMENT", "operations"));
    let status = rpc.subscribe_inventory(v1::SubscribeInventoryRequest::default()).await.unwrap_err();
    assert_eq!(error_of(&status), invalid("INVALID_ARGUMENT", "inventories"));
    assert_eq!(server.version("a").await.revision, 1);
}

#[tokio::test]
async fn case_16_unknown_fields_are_ignored_and_malformed_messages_are_rejected() {
    let server = world().await;
    let drop = |id: &[u8], more: &[u8]| {
        let context = field(1, &field(1, b"key"));
        [context, field(2, &[field(1, id), field(2, b""), more.to_vec()].concat())].concat()
    };
    // Field 15 is unknown, as if the client were newer than the service; the slot is 0.
    raw::send(&server.client, "DropItem", drop(b"a", &field(15, b"new"))).await.unwrap();
    assert_eq!(server.version("a").await.revision, 2);

    for (what, message) in [
        ("bad UTF-8", drop(b"a\xFF", b"")),
        ("a truncated field", drop(b"a", b"")[..11].to_vec()),
        ("a field of another type", field(2, &[1 << 3, 5])),
        ("noise", vec![0xFF; 40]),
    ] {
        let status = raw::send(&server.client, "DropItem", message).await.expect_err(what);
        assert_eq!(error_of(&status), (Code::InvalidArgument, "MALFORMED".into(), None), "{what}: {status:?}");
    }
    assert_eq!(server.version("a").await.revision, 2);
}

#[tokio::test]
async fn case_17_an_idempotency_key_must_have_1_to_255_bytes() {
    let server = world().await;
    for key in ["", &"k".repeat(256), "line\nbreak"] {
        let status = server.client.mutate(with_key(key), drop("a", 0, Some(1))).await.unwrap_err();
        assert_eq!(error_of(&status), invalid("INVALID_ARGUMENT", "context.idempotency_key"));
    }
    let request = v1::DropItemRequest {
        context: None,
        drop: Some(v1::DropItem { inventory_id: "a".into(), ..v1::DropItem::default() }),
    };
    let status = server.client.rpc().drop_item(request).await.unwrap_err();
    assert_eq!(error_of(&status), invalid("INVALID_ARGUMENT", "context.idempotency_key"));
    assert_eq!(server.version("a").await.revision, 1);
    server.client.mutate(with_key(&"k".repeat(255)), drop("a", 0, Some(1))).await.unwrap();
}

#[tokio::test]
async fn a_rejected_mutation_sends_no_frame() {
    let server = world().await;
    let mut reader = server.subscribe(&[("a", None), ("b", None)]).await;
    reader.next().await;
    for refused in [add("a", "stone", 0), remove("a", "coal", 3), transfer("a", "b", "coal", 3), more_than_there_is()] {
        server.mutate(refused).await.unwrap_err();
    }
    // The next message contains only the accepted mutation.
    server.mutate(remove("a", "coal", 2)).await.unwrap();
    let message = reader.next().await;
    let changes: Vec<_> = message.changes.iter().map(|change| (change.watch, change.advance)).collect();
    assert_eq!((changes, message.marks.len()), (vec![(0, 1)], 0));
}

fn more_than_there_is() -> Operation {
    Operation::Rearrange(v1::RearrangeInventory {
        inventory_id: "a".into(),
        stacks: vec![v1::SlotStack {
            slot: 0,
            stack: Some(v1::Stack { item: "coal".into(), count: 3, ..v1::Stack::default() }),
        }],
    })
}

#[tokio::test]
async fn a_quantity_can_specify_attributes_or_match_any() {
    let server = world().await;
    let sharp = v1::Stack { attributes: b"sharp".to_vec(), ..stack("diamond_axe", 1) };
    server.mutate(set("a", 5, Some(sharp))).await.unwrap();
    let remove = |attributes: Option<&[u8]>| {
        let what = v1::ItemQuantity { attributes: attributes.map(<[u8]>::to_vec), ..quantity("diamond_axe", 1) };
        Operation::Remove(v1::RemoveItem { inventory_id: "a".into(), item: Some(what) })
    };
    assert_eq!(error_of(&server.mutate(remove(Some(b""))).await.unwrap_err()), precondition("NOT_ENOUGH"));
    assert_eq!(error_of(&server.mutate(remove(Some(b"blunt"))).await.unwrap_err()), precondition("NOT_ENOUGH"));
    server.mutate(remove(None)).await.unwrap();
}

#[tokio::test]
async fn a_request_with_very_many_messages_is_refused_before_it_is_decoded() {
    let server = world().await;
    // Empty operations of two bytes each.
    for (rpc, field) in [("Transact", 2), ("SubscribeInventory", 1)] {
        let message = [field << 3 | 2, 0].repeat(100_000);
        let status = raw::send(&server.client, rpc, message).await.unwrap_err();
        assert_eq!(error_of(&status), (Code::InvalidArgument, "MALFORMED".into(), None), "{rpc}");
        assert!(status.message().contains("16384 messages"), "{status}");
    }
}
