//! A simulation of two predicting sessions and a third caller against a model of the service, in virtual time, over
//! links that delay, reorder and lose messages.
//!
//! `SLOTCAST_HISTORIES` sets the number of random histories (500 by default); `SLOTCAST_SEED` repeats a single one.

use crate::support::service::{Call, Service};
use crate::support::{World, count, filled, id, item, layout_id, stack};
use slotcast::domain::catalog::{CatalogSource, RecipeSource};
use slotcast::domain::mutation::TransferSource;
use slotcast::domain::{
    Attributes, Catalog, IdempotencyKey, InventoryId, KeyTag, Mutation, Operation, SessionId, Slot, Version,
};
use slotcast::sync::{
    Cursor, FrameBody, FullReason, Mirror, MirrorUpdate, Moment, Prediction, SubscribeOptions, Subscription,
    SyncSettings,
};
use slotcast::wire::frame;
use slotcast::wire::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const NAMES: [&str; 3] = ["anna", "chest", "pouch"];
/// Planks, log, stick, sword.
const CODES: [u32; 4] = [1, 15, 21, 29];
const ACTIVE: Duration = Duration::from_secs(4);
/// Time for the last reply, the last reconnect, and two heartbeats.
const QUIET: Duration = Duration::from_secs(45);

/// Number of events by kind, which shows that the histories cover them.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    histories: u64,
    predicted: u64,
    refused: u64,
    replayed: u64,
    frames: u64,
    deltas: u64,
    fulls: u64,
    corrections: u64,
    /// Deltas based on a state whose reply had not arrived yet.
    before_reply: u64,
    skipping: u64,
    stale: u64,
    reconnects: u64,
    unknown: u64,
    recreated: u64,
    desyncs: u64,
}

#[test]
fn every_session_converges_and_confirms_only_states_that_existed() {
    if let Some(seed) = number("SLOTCAST_SEED") {
        println!("{:#?}", Simulation::new(seed).run());
        return;
    }
    let mut total = Tally::default();
    for seed in 0..number("SLOTCAST_HISTORIES").unwrap_or(500) {
        let run = std::panic::catch_unwind(|| Simulation::new(seed).run());
        total.add(run.unwrap_or_else(|_| panic!("run it again with SLOTCAST_SEED={seed}")));
    }
    println!("{total:#?}");
    assert_eq!(total.desyncs, 0);
    let rare = [total.before_reply, total.skipping, total.stale, total.corrections, total.replayed, total.unknown];
    assert!(total.histories < 100 || rare.iter().all(|happened| *happened > 0), "{rare:?}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

enum Event {
    Act(usize),
    ByAnother,
    Flip,
    Lose(usize),
    Connect(usize),
    Subscribe { who: usize, stream: u64, cursors: Vec<Option<Cursor>> },
    Request { who: usize, call: Call },
    Reply { who: usize, key: IdempotencyKey, reply: Result<Vec<Version>, ()> },
    Message { who: usize, stream: u64, message: Box<v1::SubscribeInventoryResponse> },
}

struct Client {
    session: SessionId,
    ids: Vec<InventoryId>,
    catalog: Arc<Catalog>,
    mirror: Mirror,
    /// Number of the current stream; messages of earlier streams are dropped.
    stream: u64,
    calls: u64,
    waiting: BTreeMap<IdempotencyKey, Call>,
    /// The server side of the stream.
    served: Option<Served>,
}

struct Served {
    subscription: Subscription,
    stalled_until: Moment,
    arrives_last: Moment,
}

struct Simulation {
    rng: fastrand::Rng,
    now: Moment,
    events: BTreeMap<(Moment, u64), Event>,
    scheduled: u64,
    service: Service,
    settings: SyncSettings,
    clients: Vec<Client>,
    tally: Tally,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = World::new(catalog(64, 4));
        let layouts = ["player", "chest", "pouch"];
        for (name, layout) in NAMES.into_iter().zip(layouts) {
            let stacks: Vec<_> =
                (0..4).map(|slot| filled(slot, stack(CODES[rng.usize(..3)], rng.u32(1..60)))).collect();
            world.put(name, layout, rng.u64(1..9), &stacks);
        }
        let followed: [&[&str]; 2] = [&["anna", "chest"], &["pouch", "chest", "anna"]];
        let clients = followed.iter().enumerate().map(|(who, names)| {
            // A client with another catalog than the service makes wrong predictions.
            let (limit, planks) = if rng.u8(..10) < 3 { (rng.u32(5..64), rng.u32(1..6)) } else { (64, 4) };
            Client::new(who, names, catalog(limit, planks))
        });
        let clients = clients.collect();
        let settings = random_settings(&mut rng);
        let mut simulation = Self {
            rng,
            now: Moment::ZERO,
            events: BTreeMap::new(),
            scheduled: 0,
            service: Service::new(world),
            settings,
            clients,
            tally: Tally { histories: 1, ..Tally::default() },
        };
        simulation.plan();
        simulation
    }

    /// Schedules the events that do not depend on messages.
    fn plan(&mut self) {
        let calm = self.rng.bool();
        for who in 0..self.clients.len() {
            self.after(0, Event::Connect(who));
            for _ in 0..self.rng.u32(1..30) {
                self.schedule_at_random(Event::Act(who));
            }
            for _ in 0..self.rng.u32(..if calm { 1 } else { 4 }) {
                self.schedule_at_random(Event::Lose(who));
            }
        }
        for _ in 0..self.rng.u32(..if calm { 3 } else { 20 }) {
            self.schedule_at_random(Event::ByAnother);
        }
        for _ in 0..self.rng.u32(..if calm { 1 } else { 4 }) {
            self.schedule_at_random(Event::Flip);
        }
    }

    fn schedule_at_random(&mut self, event: Event) {
        let ms = self.rng.u64(..ACTIVE.as_millis() as u64);
        self.after(ms, event);
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((self.now + Duration::from_millis(ms), self.scheduled), event);
    }

    fn delay(&mut self) -> u64 {
        if self.rng.u8(..10) == 0 { self.rng.u64(..1_500) } else { self.rng.u64(1..120) }
    }

    fn run(mut self) -> Tally {
        let end = ACTIVE + QUIET;
        while self.now < end {
            let polls = self.clients.iter().filter_map(|client| client.served.as_ref());
            let polls = polls.map(|served| served.subscription.poll_timeout(self.now).max(served.stalled_until));
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            self.now = polls.chain(event).min().unwrap_or(end).max(self.now);
            if event.is_some_and(|at| at <= self.now) {
                let (_, event) = self.events.pop_first().unwrap();
                self.handle(event);
            }
            self.poll_streams();
            self.check();
        }
        self.check_end();
        self.tally.desyncs = self.clients.iter().map(|client| client.mirror.desyncs()).sum();
        self.tally
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Act(who) => self.act(who),
            Event::ByAnother => self.act_by_another(),
            Event::Flip => {
                self.settings = random_settings(&mut self.rng);
                let served = self.clients.iter_mut().filter_map(|client| client.served.as_mut());
                served.for_each(|served| served.subscription.handle_settings(self.settings));
            }
            Event::Lose(who) => self.lose(who),
            Event::Connect(who) => {
                let client = &mut self.clients[who];
                (client.stream, client.served) = (client.stream + 1, None);
                let (stream, cursors) = (client.stream, client.mirror.handle_connecting());
                let delay = self.delay();
                self.after(delay, Event::Subscribe { who, stream, cursors });
            }
            Event::Subscribe { who, stream, cursors } if self.clients[who].stream == stream => {
                let client = &mut self.clients[who];
                let session = Some(client.session.clone());
                let options = SubscribeOptions { resume: cursors, session, ..SubscribeOptions::default() };
                let subscription = Subscription::new(self.settings, options);
                client.served = Some(Served { subscription, stalled_until: self.now, arrives_last: self.now });
            }
            Event::Request { who, call } => self.request(who, call),
            Event::Reply { who, key, reply } => self.reply(who, &key, reply),
            Event::Message { who, stream, message } if self.clients[who].stream == stream => {
                self.message(who, &message);
            }
            Event::Subscribe { .. } | Event::Message { .. } => {}
        }
    }

    fn lose(&mut self, who: usize) {
        self.tally.reconnects += 1;
        // Messages in flight are lost.
        self.clients[who].stream += 1;
        self.clients[who].served = None;
        let delay = self.delay();
        self.after(delay, Event::Connect(who));
    }

    fn act(&mut self, who: usize) {
        let mutation = self.random_mutation();
        let client = &mut self.clients[who];
        client.calls += 1;
        let key = IdempotencyKey::new(&format!("{who}-{}", client.calls)).unwrap();
        let predicted = match client.mirror.predict(KeyTag::of(&key), with_recipes_of(&client.catalog, &mutation)) {
            Ok(Prediction::Made(predicted)) => predicted,
            Ok(Prediction::Impossible) => Vec::new(),
            Err(_) => return,
        };
        self.tally.predicted += u64::from(!predicted.is_empty());
        let session = Some(client.session.clone()).filter(|_| !predicted.is_empty());
        let call = Call { key: key.clone(), mutation, session, predicted };
        client.waiting.insert(key, call.clone());
        let delay = self.delay();
        self.after(delay, Event::Request { who, call });
    }

    fn act_by_another(&mut self) {
        let mutation = self.random_mutation();
        let key = IdempotencyKey::new(&format!("another-{}", self.scheduled)).unwrap();
        self.scheduled += 1;
        let _ = self.service.mutate(&Call { key, mutation, session: None, predicted: vec![] });
    }

    fn request(&mut self, who: usize, call: Call) {
        let fate = self.rng.u8(..100);
        let key = call.key.clone();
        if fate >= 7 {
            let reply = self.service.mutate(&call);
            if fate >= 14 {
                let delay = self.delay();
                return self.after(delay, Event::Reply { who, key, reply });
            }
        }
        // The request or its reply was lost: the client retries with the same key, or gives up.
        if self.rng.u8(..10) > 0 {
            let delay = self.delay();
            self.tally.replayed += u64::from(fate >= 7);
            return self.after(delay, Event::Request { who, call });
        }
        self.tally.unknown += 1;
        self.clients[who].waiting.remove(&key);
        self.clients[who].mirror.handle_failure(KeyTag::of(&key));
        self.lose(who);
    }

    fn reply(&mut self, who: usize, key: &IdempotencyKey, reply: Result<Vec<Version>, ()>) {
        let client = &mut self.clients[who];
        client.waiting.remove(key);
        match reply {
            Ok(versions) => drop(client.mirror.handle_reply(KeyTag::of(key), &versions)),
            Err(()) => {
                self.tally.refused += 1;
                client.mirror.handle_failure(KeyTag::of(key));
            }
        }
    }

    fn message(&mut self, who: usize, message: &v1::SubscribeInventoryResponse) {
        let Client { mirror, ids, .. } = &mut self.clients[who];
        let decoded = frame::decode_frame(message, ids, |position| mirror.last_sent(position));
        assert_eq!(decoded.malformed, [] as [usize; 0]);
        self.tally.frames += 1;
        for (position, part) in &decoded.frame.changed {
            let have = mirror.confirmed(*position).map(Cursor::of);
            let revision = have.map_or(0, |cursor| cursor.revision.0);
            match part.body {
                FrameBody::Full { reason, epoch, revision: of_frame, .. } => {
                    self.tally.fulls += 1;
                    self.tally.corrections += u64::from(reason == FullReason::Correction);
                    self.tally.recreated += u64::from(have.is_some_and(|have| have.epoch != epoch));
                    self.tally.stale +=
                        u64::from(have.is_some_and(|have| have.epoch == epoch) && revision > of_frame.0);
                }
                FrameBody::Delta { last_sent, base, .. } => {
                    self.tally.deltas += 1;
                    self.tally.skipping += u64::from(base > last_sent);
                    self.tally.before_reply += u64::from(base.0 > revision);
                }
            }
        }
        let MirrorUpdate { desyncs, .. } = mirror.handle_frame(&decoded.frame);
        assert_eq!(desyncs, [] as [usize; 0], "{:?}: {message:?}", self.now);
    }

    fn poll_streams(&mut self) {
        for who in 0..self.clients.len() {
            let (delay, stall) = (self.delay(), self.rng.u8(..50) == 0);
            let client = &mut self.clients[who];
            let Some(served) = client.served.as_mut().filter(|served| served.stalled_until <= self.now) else {
                continue;
            };
            let states = self.service.states(&client.ids);
            served.subscription.handle_states(&states);
            let Some(frame) = served.subscription.poll_frame(self.now, || states.clone()).unwrap() else { continue };
            // Messages of one stream arrive in order.
            served.arrives_last = served.arrives_last.max(self.now + Duration::from_millis(delay));
            if stall {
                served.stalled_until = self.now + Duration::from_millis(700);
            }
            let (stream, message) = (client.stream, Box::new(frame::encode_frame(&frame)));
            let ms = (served.arrives_last - self.now).as_millis() as u64;
            self.after(ms, Event::Message { who, stream, message });
        }
    }

    /// Checks that every confirmed state equals the state of the service at that revision, slot by slot.
    fn check(&self) {
        for client in &self.clients {
            for (position, id) in client.ids.iter().enumerate() {
                let Some(have) = client.mirror.confirmed(position) else { continue };
                let was = &self.service.ages[&(id.clone(), have.epoch, have.contents.revision())];
                assert!(have.contents.stacks().map(|(slot, stack)| (slot, stack.clone())).eq(was.iter().cloned()));
            }
        }
    }

    fn check_end(&self) {
        for client in &self.clients {
            assert!(client.waiting.is_empty());
            assert_eq!(client.mirror.pending(), 0, "every prediction has its end");
            for (position, id) in client.ids.iter().enumerate() {
                let truth = self.service.world.inventories.get(id).map(|truth| truth.version());
                let have = client.mirror.confirmed(position).map(|have| have.version());
                assert_eq!(have, truth, "after quiet everybody has what the service has");
                let shown = client.mirror.view(position).map(|view| (view.revision(), view.digest()));
                assert_eq!(shown, truth.map(|truth| (truth.revision, truth.digest)));
            }
        }
    }

    fn random_mutation(&mut self) -> Mutation {
        let operations = if self.rng.u8(..8) == 0 { 2 } else { 1 };
        let operations = (0..operations).map(|_| self.random_operation()).collect();
        Mutation { operations, expected: vec![] }
    }

    fn random_operation(&mut self) -> Operation {
        let catalog = self.service.world.catalog.clone();
        let rng = &mut self.rng;
        let (id, slot) = (id(NAMES[rng.usize(..3)]), Slot(rng.u16(..5)));
        let (item, number) = (item(CODES[rng.usize(..4)]), count(rng.u32(1..30)));
        match rng.u8(..40) {
            0..8 => Operation::Drop { id, slot, count: Some(count(1)) },
            8..10 => Operation::Drop { id, slot, count: None },
            10..17 => Operation::Move { id, from: slot, to: Slot(rng.u16(..5)), count: None },
            17..22 => {
                Operation::Add { id, item, attributes: Attributes::NONE, count: number, allow_partial: rng.bool() }
            }
            22..25 => Operation::Remove { id, item, attributes: None, count: number },
            25..29 => {
                let recipes = catalog.recipes();
                Operation::Craft { id, recipe: recipes[rng.usize(..recipes.len())].clone(), times: count(1) }
            }
            29..36 => {
                let what = TransferSource::Slot { slot, count: None };
                let to = crate::support::id(NAMES[rng.usize(..3)]);
                Operation::Transfer { from: id, what, to, to_slot: None, allow_partial: rng.bool() }
            }
            36..38 => Operation::Set { id, slot, stack: Some(stack(CODES[rng.usize(..3)], rng.u32(1..5))) },
            38 if self.service.world.inventories.contains_key(&id) => Operation::Delete { id },
            _ => {
                let stacks = vec![(slot, stack(CODES[rng.usize(..3)], rng.u32(1..5)))];
                let layout = if id.as_str() == "anna" { "player" } else { id.as_str() };
                Operation::Create { layout: layout_id(layout), id, owner: None, stacks }
            }
        }
    }
}

impl Client {
    fn new(who: usize, names: &[&str], catalog: Catalog) -> Self {
        let (ids, catalog): (Vec<_>, _) = (names.iter().map(|name| id(name)).collect(), Arc::new(catalog));
        Self {
            session: SessionId::new(&format!("session-{who}")).unwrap(),
            mirror: Mirror::new(ids.clone(), catalog.clone()),
            ids,
            catalog,
            stream: 0,
            calls: 0,
            waiting: BTreeMap::new(),
            served: None,
        }
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        let Self { histories, predicted, refused, replayed, frames, deltas, fulls, corrections, .. } = other;
        self.histories += histories;
        self.predicted += predicted;
        self.refused += refused;
        self.replayed += replayed;
        self.frames += frames;
        self.deltas += deltas;
        self.fulls += fulls;
        self.corrections += corrections;
        self.before_reply += other.before_reply;
        self.skipping += other.skipping;
        self.stale += other.stale;
        self.reconnects += other.reconnects;
        self.unknown += other.unknown;
        self.recreated += other.recreated;
        self.desyncs += other.desyncs;
    }
}

/// Returns a catalog of planks, logs, sticks and swords with a stack limit and a number of planks per log.
fn catalog(limit: u32, planks: u32) -> Catalog {
    let items = [("planks", 1, 64), ("log", 15, limit), ("stick", 21, 64), ("sword", 29, 1)];
    let one = |item: &str, count| vec![(item.to_owned(), count)];
    Catalog::new(CatalogSource {
        items: items.map(|(item, code, limit)| (item.to_owned(), code, limit)).into(),
        recipes: vec![
            RecipeSource { id: "planks".into(), inputs: one("log", 1), outputs: one("planks", planks) },
            RecipeSource { id: "stick".into(), inputs: one("planks", 2), outputs: one("stick", 4) },
        ],
        layouts: [("player", 36), ("chest", 27), ("pouch", 5)]
            .map(|(layout, slots)| (layout.to_owned(), vec![("all".to_owned(), slots)]))
            .into(),
    })
    .unwrap()
}

/// Returns the mutation with the recipes of a client's catalog.
fn with_recipes_of(catalog: &Catalog, mutation: &Mutation) -> Mutation {
    let mut mutation = mutation.clone();
    for operation in &mut mutation.operations {
        if let Operation::Craft { recipe, .. } = operation {
            *recipe = catalog.recipe(&recipe.id).unwrap().clone();
        }
    }
    mutation
}

fn random_settings(rng: &mut fastrand::Rng) -> SyncSettings {
    let default = SyncSettings::default();
    match rng.u8(..8) {
        0 => SyncSettings::immediate_full(),
        1 => SyncSettings { prediction: false, ..default },
        2 => SyncSettings { delta_slots_max: 0, ..default },
        3 => SyncSettings { delta_slots_max: 1, ..default },
        _ => default,
    }
}
