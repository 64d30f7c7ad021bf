//! The requests of the measurements, and the verification of their replies.

use super::http2::CallStatus;
use super::subscribers::session;
use super::world::{ADDS_PER_ITEM, FILLED_SLOTS, SLOTS, World, request_bytes};
use super::yardstick::{ECHO_PATH, EchoMessage};
use super::zipf::Zipf;
use crate::wire::v1;
use prost::Message;
use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Builder;

/// Number of transfers after which one is reversed, so that no inventory runs out of an item or fills up. Much more
/// than the mutations in flight, so that both are not in the same commit.
const TRANSFERS_OUTSTANDING: usize = 1_024;
const ZIPF_EXPONENT: f64 = 1.5;
/// One in this many replies is decoded and verified.
const VERIFIED_EVERY: u32 = 256;
const CODE_NOT_FOUND: u32 = 5;

/// A kind of call that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallKind {
    /// A call of the bare tonic echo, with messages of the sizes of AddItem's.
    Echo,
    Get,
    /// GetInventory of an id that does not exist.
    GetMissing,
    Add,
    /// TransferItem between two inventories, each with the same probability.
    Transfer,
    /// TransferItem between two inventories of a Zipf distribution with exponent 1.5.
    TransferZipf,
}

impl CallKind {
    pub fn title(self) -> &'static str {
        match self {
            Self::Echo => "bare tonic echo",
            Self::Get => "GetInventory",
            Self::GetMissing => "GetInventory, missing",
            Self::Add => "AddItem, durable",
            Self::Transfer => "TransferItem, uniform",
            Self::TransferZipf => "TransferItem, Zipf 1.5",
        }
    }

    pub fn is_of_the_yardstick(self) -> bool {
        self == Self::Echo
    }
}

/// What a call of a workload was about, to verify its reply.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub kind: CallKind,
    pub inventory: u32,
    is_removal: bool,
    /// How many calls the inventory got before.
    step: u32,
}

impl Sent {
    /// The revision that the mutation created, from its reply. For an echo, the number of calls for the same stream.
    pub fn revision(&self, message: &[u8]) -> u64 {
        let receipt = match self.kind {
            CallKind::Echo => return u64::from(self.step) + 1,
            CallKind::Get | CallKind::GetMissing => return 0,
            CallKind::Add if self.is_removal => v1::RemoveItemResponse::decode(message).map(|reply| reply.receipt),
            CallKind::Add => v1::AddItemResponse::decode(message).map(|reply| reply.receipt),
            CallKind::Transfer | CallKind::TransferZipf => {
                v1::TransferItemResponse::decode(message).map(|reply| reply.receipt)
            }
        };
        let version = receipt.ok().flatten().and_then(|receipt| receipt.inventories.into_iter().next());
        version.map_or(0, |version| version.revision)
    }
}

/// Makes the requests of one kind of call.
#[derive(Debug)]
pub struct Workload {
    kind: CallKind,
    world: World,
    random: fastrand::Rng,
    zipf: Option<Zipf>,
    /// How many calls each inventory got.
    steps: Vec<u32>,
    transfers: VecDeque<(u32, u32, usize)>,
    replies: u32,
    request: Requests,
    /// Each echo sends a message to a stream.
    has_streams: bool,
    /// Each mutation is sent by the session of its inventory.
    has_sessions: bool,
    /// The next inventory, if they take turns.
    turn: Option<u32>,
}

/// Reused request messages.
#[derive(Debug, Default)]
struct Requests {
    get: v1::GetInventoryRequest,
    add: v1::AddItemRequest,
    remove: v1::RemoveItemRequest,
    transfer: v1::TransferItemRequest,
    echo: EchoMessage,
}

impl Workload {
    pub fn new(kind: CallKind, world: World) -> Self {
        let ranks = if kind == CallKind::TransferZipf { world.active as usize } else { 0 };
        let echo =
            EchoMessage { payload: vec![7; EchoMessage::payload_bytes(request_bytes(&world))].into(), stream: 0 };
        Self {
            kind,
            zipf: (ranks > 0).then(|| Zipf::new(ranks, ZIPF_EXPONENT)),
            steps: vec![0; world.active as usize],
            transfers: VecDeque::new(),
            random: fastrand::Rng::with_seed(kind as u64 + 1),
            world,
            replies: 0,
            request: Requests { echo, ..Requests::default() },
            has_streams: false,
            has_sessions: false,
            turn: None,
        }
    }

    /// Lets the inventories take turns, instead of drawing them at random.
    pub fn in_turns(self) -> Self {
        Self { turn: Some(0), ..self }
    }

    /// Lets each echo send a message to a random bare stream.
    pub fn with_streams(self) -> Self {
        Self { has_streams: true, ..self }
    }

    /// Lets each mutation name the session of its inventory's stream.
    pub fn with_sessions(self) -> Self {
        Self { has_sessions: true, ..self }
    }

    /// Writes the next request.
    pub fn next(&mut self, message: &mut Vec<u8>) -> (&'static str, Sent) {
        match self.kind {
            CallKind::Echo if self.has_streams => {
                let inventory = self.inventory();
                self.request.echo.stream = inventory + 1;
                let step = self.steps[inventory as usize];
                self.steps[inventory as usize] += 1;
                let (path, sent) = self.encode(ECHO_PATH, inventory, message, |request| &request.echo);
                (path, Sent { step, ..sent })
            }
            CallKind::Echo => self.encode(ECHO_PATH, 0, message, |request| &request.echo),
            CallKind::Get => {
                let inventory = self.inventory();
                self.world.write_id(inventory, &mut self.request.get.inventory_id);
                self.encode(GET_PATH, inventory, message, |request| &request.get)
            }
            CallKind::GetMissing => {
                let number = self.random.u32(..);
                self.request.get.inventory_id = format!("missing-{number:010}");
                self.encode(GET_PATH, 0, message, |request| &request.get)
            }
            CallKind::Add => {
                let inventory = self.inventory();
                self.add(inventory, message)
            }
            CallKind::Transfer | CallKind::TransferZipf => self.transfer(message),
        }
    }

    fn inventory(&mut self) -> u32 {
        match &mut self.turn {
            Some(turn) => {
                let inventory = *turn;
                *turn = (inventory + 1) % self.world.active;
                inventory
            }
            None => self.random.u32(..self.world.active),
        }
    }

    /// Writes the next AddItem request for an inventory, or RemoveItem if the inventory has got enough.
    fn add(&mut self, inventory: u32, message: &mut Vec<u8>) -> (&'static str, Sent) {
        let session = if self.has_sessions { session(inventory) } else { String::new() };
        let step = &mut self.steps[inventory as usize];
        let items = FILLED_SLOTS as u32;
        let is_removal = *step >= items * ADDS_PER_ITEM;
        let item = &self.world.items[(*step % items) as usize];
        *step = (*step + 1) % (items * (ADDS_PER_ITEM + 1));
        let request = &mut self.request;
        if is_removal {
            renew(&mut request.remove.context, &session, &mut self.random);
            let remove = request.remove.remove.get_or_insert_default();
            self.world.write_id(inventory, &mut remove.inventory_id);
            let quantity = remove.item.get_or_insert_default();
            quantity.item.clone_from(item);
            quantity.count = ADDS_PER_ITEM;
            let (path, sent) = self.encode(REMOVE_PATH, inventory, message, |request| &request.remove);
            return (path, Sent { is_removal, ..sent });
        }
        renew(&mut request.add.context, &session, &mut self.random);
        let add = request.add.add.get_or_insert_default();
        self.world.write_id(inventory, &mut add.inventory_id);
        let stack = add.stack.get_or_insert_default();
        stack.item.clone_from(item);
        stack.count = 1;
        self.encode(ADD_PATH, inventory, message, |request| &request.add)
    }

    fn transfer(&mut self, message: &mut Vec<u8>) -> (&'static str, Sent) {
        let reversed = if self.transfers.len() >= TRANSFERS_OUTSTANDING { self.transfers.pop_front() } else { None };
        let (from, to, item) = match reversed {
            Some((from, to, item)) => (to, from, item),
            None => {
                let from = self.draw();
                let other = std::iter::repeat_with(|| self.draw()).find(|to| *to != from).unwrap_or_default();
                let item = self.random.usize(..self.world.items.len());
                self.transfers.push_back((from, other, item));
                (from, other, item)
            }
        };
        renew(&mut self.request.transfer.context, "", &mut self.random);
        let transfer = self.request.transfer.transfer.get_or_insert_default();
        self.world.write_id(from, &mut transfer.from_inventory_id);
        self.world.write_id(to, &mut transfer.to_inventory_id);
        let item = self.world.items[item].clone();
        let item = v1::ItemQuantity { item, count: 1, ..v1::ItemQuantity::default() };
        transfer.what = Some(v1::transfer_item::What::Item(item));
        self.encode(TRANSFER_PATH, from, message, |request| &request.transfer)
    }

    fn draw(&mut self) -> u32 {
        match &self.zipf {
            Some(zipf) => zipf.rank(self.random.f64()) as u32,
            None => self.random.u32(..self.world.active),
        }
    }

    fn encode<M: Message>(
        &self,
        path: &'static str,
        inventory: u32,
        message: &mut Vec<u8>,
        request: impl Fn(&Requests) -> &M,
    ) -> (&'static str, Sent) {
        message.clear();
        // A Vec grows, so the encoding has room.
        let _ = request(&self.request).encode(message);
        (path, Sent { kind: self.kind, inventory, is_removal: false, step: 0 })
    }

    /// Verifies a sample of the reply messages.
    pub fn verify_message(&mut self, sent: Sent, message: &[u8]) -> Result<(), String> {
        self.replies = self.replies.wrapping_add(1);
        if self.replies % VERIFIED_EVERY != 1 {
            return Ok(());
        }
        let invalid = |error: prost::DecodeError| format!("the reply is not valid: {error}");
        let id = self.world.id(sent.inventory);
        let is_expected = match sent.kind {
            CallKind::Echo => !EchoMessage::decode(message).map_err(invalid)?.payload.is_empty(),
            CallKind::GetMissing => false,
            CallKind::Get => {
                let inventory = v1::GetInventoryResponse::decode(message).map_err(invalid)?.inventory;
                let inventory = inventory.unwrap_or_default();
                let counts = inventory.stacks.iter().map(|slot| slot.stack.as_ref().map_or(0, |stack| stack.count));
                names(&inventory.version, &id) && inventory.slots == SLOTS as u32 && counts.sum::<u32>() > 0
            }
            CallKind::Add if sent.is_removal => {
                let reply = v1::RemoveItemResponse::decode(message).map_err(invalid)?;
                is_applied(reply.receipt, &id)
            }
            CallKind::Add => {
                let reply = v1::AddItemResponse::decode(message).map_err(invalid)?;
                reply.added == 1 && reply.remainder == 0 && is_applied(reply.receipt, &id)
            }
            CallKind::Transfer | CallKind::TransferZipf => {
                let reply = v1::TransferItemResponse::decode(message).map_err(invalid)?;
                reply.moved == 1 && reply.remainder == 0 && is_applied(reply.receipt, &id)
            }
        };
        if is_expected { Ok(()) } else { Err(format!("unexpected reply to {}", sent.kind.title())) }
    }

    /// Verifies the end of a call: status OK with exactly one message, or the error that the call must get.
    pub fn verify_end(sent: Sent, messages: u32, status: &CallStatus) -> Result<(), String> {
        let expected = if sent.kind == CallKind::GetMissing { (CODE_NOT_FOUND, 0) } else { (0, 1) };
        if (status.code, messages) == expected {
            return Ok(());
        }
        let CallStatus { code, message } = status;
        Err(format!("{}: status {code}, {messages} messages: {message}", sent.kind.title()))
    }
}

const GET_PATH: &str = "/slotcast.v1.InventoryService/GetInventory";
const ADD_PATH: &str = "/slotcast.v1.InventoryService/AddItem";
const REMOVE_PATH: &str = "/slotcast.v1.InventoryService/RemoveItem";
const TRANSFER_PATH: &str = "/slotcast.v1.InventoryService/TransferItem";

fn names(version: &Option<v1::InventoryVersion>, id: &str) -> bool {
    version.as_ref().is_some_and(|version| version.inventory_id == id)
}

fn is_applied(receipt: Option<v1::MutationReceipt>, id: &str) -> bool {
    receipt.is_some_and(|receipt| {
        !receipt.replayed && receipt.inventories.iter().any(|version| version.inventory_id == id)
    })
}

/// Gives a mutation a new idempotency key.
fn renew(context: &mut Option<v1::MutationContext>, session: &str, random: &mut fastrand::Rng) {
    let context = context.get_or_insert_default();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut bytes = [0; 10];
    random.fill(&mut bytes);
    let key = Builder::from_unix_timestamp_millis(now_ms, &bytes).into_uuid();
    context.idempotency_key.clear();
    context.idempotency_key.push_str(key.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
    if context.session != session {
        context.session = session.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::STACK_COUNT;
    use super::*;
    use crate::catalog_file::default_catalog;

    fn workload(kind: CallKind, active: u32) -> Workload {
        Workload::new(kind, World::new("bench-", active, &default_catalog()).expect("the catalog fits"))
    }

    #[test]
    fn an_inventory_never_overflows_and_never_runs_out() {
        let mut workload = workload(CallKind::Add, 1);
        let mut counts = vec![STACK_COUNT; FILLED_SLOTS];
        let mut message = Vec::new();
        for _ in 0..2_000 {
            let (path, _) = workload.next(&mut message);
            let position = |id: &str| workload.world.items.iter().position(|item| item == id).expect("known");
            if path == ADD_PATH {
                let add = v1::AddItemRequest::decode(&*message).expect("valid").add.expect("set");
                counts[position(&add.stack.expect("set").item)] += 1;
            } else {
                let remove = v1::RemoveItemRequest::decode(&*message).expect("valid").remove.expect("set");
                let item = remove.item.expect("set");
                counts[position(&item.item)] -= item.count;
            }
            assert!(counts.iter().all(|count| (1..=64).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn the_echo_has_the_size_of_add_item() {
        let (mut echo, mut add) = (workload(CallKind::Echo, 10), workload(CallKind::Add, 10));
        let (mut echo_message, mut add_message) = (Vec::new(), Vec::new());
        let (path, _) = echo.next(&mut echo_message);
        assert_eq!(path, ECHO_PATH);
        add.next(&mut add_message);
        assert_eq!(echo_message.len(), request_bytes(&echo.world));
        assert!(echo_message.len().abs_diff(add_message.len()) < 8, "item names differ in length");
    }

    #[test]
    fn transfers_are_between_two_inventories_and_are_reversed_later() {
        for kind in [CallKind::Transfer, CallKind::TransferZipf] {
            let mut workload = workload(kind, 3);
            let mut moved = [0_i32; 3];
            let mut message = Vec::new();
            for _ in 0..20_000 {
                workload.next(&mut message);
                let transfer = v1::TransferItemRequest::decode(&*message).expect("valid").transfer.expect("set");
                assert_ne!(transfer.from_inventory_id, transfer.to_inventory_id);
                let number = |id: &str| id.trim_start_matches("bench-").parse::<usize>().expect("a number");
                moved[number(&transfer.from_inventory_id)] -= 1;
                moved[number(&transfer.to_inventory_id)] += 1;
                assert!(moved.iter().all(|moved| moved.unsigned_abs() as usize <= TRANSFERS_OUTSTANDING));
            }
        }
    }

    #[test]
    fn only_the_expected_end_is_a_success() {
        let sent = |kind| Sent { kind, inventory: 0, is_removal: false, step: 0 };
        let status = |code| CallStatus { code, message: String::new() };
        assert_eq!(Workload::verify_end(sent(CallKind::Add), 1, &status(0)), Ok(()));
        assert_eq!(Workload::verify_end(sent(CallKind::GetMissing), 0, &status(5)), Ok(()));
        for (kind, messages, code) in
            [(CallKind::Add, 0, 0), (CallKind::Add, 1, 8), (CallKind::GetMissing, 1, 0), (CallKind::Get, 0, 5)]
        {
            assert!(Workload::verify_end(sent(kind), messages, &status(code)).is_err());
        }
    }
}
