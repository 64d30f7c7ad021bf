//! Benchmarks the embedded store: durable records per second while folds and checkpoints run, and the time to open the
//! store after a crash. Run with `cargo bench --bench store`. These variables change the sizes (defaults in
//! parentheses):
//!
//! - `SLOTCAST_BENCH_INVENTORIES` (100000), `SLOTCAST_BENCH_SECONDS` (15), `SLOTCAST_BENCH_BATCH` (128)
//! - `SLOTCAST_BENCH_OPEN_INVENTORIES` (1000000), `SLOTCAST_BENCH_OPEN_TAIL` (number of unfolded records; the maximum)
//! - `SLOTCAST_BENCH_FOLDER` (the system's temporary folder): a folder on the disk to measure

use slotcast::domain::flow::Flows;
use slotcast::domain::{
    Attributes, Caller, Contents, Count, Edit, Epoch, Fingerprint, Flow, IdempotencyKey, Inventory, InventoryId,
    ItemCode, LayoutId, OperationKind, OperationOutcome, PlayerId, PredictionOutcome, Revision, Slot, Stack,
    TouchedInventory,
};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStatistics, EmbeddedStore};
use slotcast::store::log::ChainHead;
use slotcast::store::{HeadBefore, MutationRecord, Reply, ScopedKey, Store};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let folder = match std::env::var_os("SLOTCAST_BENCH_FOLDER") {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.expect("a folder");
    commits(folder.path());
    opening(folder.path());
}

fn size_from_env(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn commits(folder: &Path) {
    let (inventories, batch) =
        (size_from_env("SLOTCAST_BENCH_INVENTORIES", 100_000), size_from_env("SLOTCAST_BENCH_BATCH", 128));
    let seconds = Duration::from_secs(size_from_env("SLOTCAST_BENCH_SECONDS", 15) as u64);
    let path = folder.join("commits.db");
    let store = EmbeddedStore::open(&path, EmbeddedSettings::default()).expect("the store opens");
    let mut world = World::new(inventories);
    world.create_all(&store);
    store.fold().expect("the store folds");

    let folds = store.statistics().generations_folded;
    let mut baseline = Baseline::new(folder, batch);
    let (start, mut durations, mut creating) = (Instant::now(), Vec::new(), Duration::ZERO);
    let (mut wal_bytes_max, mut unfolded_max) = (0, 0);
    while start.elapsed() < seconds + baseline.took {
        let begin = Instant::now();
        let transactions = world.changes(batch);
        creating += begin.elapsed();
        let begin = Instant::now();
        let heads = store.commit(&transactions).expect("the batch commits");
        durations.push(begin.elapsed());
        world.committed(&heads);
        if durations.len() % 64 == 0 {
            let EmbeddedStatistics { wal_bytes, unfolded_records, .. } = store.statistics();
            wal_bytes_max = wal_bytes.max(wal_bytes_max);
            unfolded_max = unfolded_records.max(unfolded_max);
        }
        // Interleaved with the commits, so that both see the same disk; takes a tenth of the time.
        if durations.len() % 512 == 0 {
            baseline.run(51);
        }
    }

    let in_commits: Duration = durations.iter().sum();
    durations.sort_unstable();
    let quantile_ms = |quantile: f64| durations[((durations.len() - 1) as f64 * quantile) as usize].as_secs_f64() * 1e3;
    let records = (durations.len() * batch) as f64;
    let (rate, with_creation) = (records / in_commits.as_secs_f64(), records / (in_commits + creating).as_secs_f64());
    println!(
        "commits: {inventories} inventories, {batch} one-slot changes per batch, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    println!("  {rate:.0} durable records/s in commit; {with_creation:.0} including their creation on the same thread");
    println!(
        "  commit p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms",
        quantile_ms(0.5),
        quantile_ms(0.99),
        quantile_ms(0.999),
        quantile_ms(1.0)
    );
    let baseline_rate = baseline.records_per_second();
    println!(
        "  baseline, the same bytes appended to a plain file with fdatasync: {baseline_rate:.0} records/s; ratio {:.2}",
        rate / baseline_rate
    );
    let EmbeddedStatistics { journal_rows, remembered_keys, generations_folded: folded, .. } = store.statistics();
    println!(
        "  folds {}, log at most {} MiB, at most {unfolded_max} unfolded records, {journal_rows} journal rows with {remembered_keys} keys at the end",
        folded - folds,
        wal_bytes_max >> 20
    );
    println!("  file {} MiB", std::fs::metadata(&path).map_or(0, |file| file.len()) >> 20);
}

/// Appends the same number of bytes to a plain file and syncs after each batch. A record has about 100 bytes.
struct Baseline {
    file: File,
    bytes: Vec<u8>,
    batch: usize,
    batches: usize,
    took: Duration,
}

impl Baseline {
    fn new(folder: &Path, batch: usize) -> Self {
        let file = File::create(folder.join("plain")).expect("a file");
        Self { file, bytes: vec![0x5A; batch * 100], batch, batches: 0, took: Duration::ZERO }
    }

    fn run(&mut self, batches: usize) {
        let start = Instant::now();
        for _ in 0..batches {
            self.file.write_all(&self.bytes).and_then(|()| self.file.sync_data()).expect("the file is written");
        }
        self.batches += batches;
        self.took += start.elapsed();
    }

    fn records_per_second(&self) -> f64 {
        (self.batches * self.batch) as f64 / self.took.as_secs_f64()
    }
}

fn opening(folder: &Path) {
    let inventories = size_from_env("SLOTCAST_BENCH_OPEN_INVENTORIES", 1_000_000);
    let path = folder.join("opening.db");
    let store = EmbeddedStore::open(&path, EmbeddedSettings::default()).expect("the store opens");
    let mut world = World::new(inventories);
    let start = Instant::now();
    world.create_all(&store);
    store.close().expect("the store closes");
    println!("opening: {inventories} inventories created and folded in {:.1} s", start.elapsed().as_secs_f64());

    // Folding is disabled, so the unfolded tail grows to its maximum.
    let default = EmbeddedSettings::default();
    let without_folds = EmbeddedSettings {
        round_records: usize::MAX,
        round_inventories: usize::MAX,
        fold_after: Duration::MAX,
        ..default.clone()
    };
    let store = EmbeddedStore::open(&path, without_folds).expect("the store opens");
    let tail = size_from_env("SLOTCAST_BENCH_OPEN_TAIL", default.unfolded_records_max);
    let hot = default.unfolded_inventories_max.min(inventories);
    let mut records = 0;
    while records + 128 < tail && store.statistics().unfolded_inventories + 128 < default.unfolded_inventories_max {
        let transactions = world.changes_among(128, hot);
        let heads = store.commit(&transactions).expect("the batch commits");
        world.committed(&heads);
        records += 128;
    }
    let EmbeddedStatistics { unfolded_inventories, remembered_keys, wal_bytes, .. } = store.statistics();
    let copy = copy_as_after_crash(&path, folder);
    drop(store);
    for attempt in 1..=3 {
        // Opens a copy of the copy, because opening recovers the log.
        let second_copy = copy_as_after_crash(&copy, &folder.join(format!("{attempt}")));
        let start = Instant::now();
        let opened = EmbeddedStore::open(&second_copy, EmbeddedSettings::default()).expect("the store opens");
        let took = start.elapsed();
        println!(
            "  open {:.2} s: {remembered_keys} keys, {records} records of {unfolded_inventories} inventories to replay, log {} MiB, file {} MiB",
            took.as_secs_f64(),
            wal_bytes >> 20,
            std::fs::metadata(&second_copy).map_or(0, |file| file.len()) >> 20
        );
        world.check(&opened);
    }
}

/// Copies the files while the store is open, as a crash would leave them.
fn copy_as_after_crash(path: &Path, folder: &Path) -> PathBuf {
    std::fs::create_dir_all(folder).expect("a folder");
    let copy = folder.join("copy.db");
    for suffix in ["", "-wal"] {
        let with_suffix = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        if with_suffix(path).exists() {
            std::fs::copy(with_suffix(path), with_suffix(&copy)).expect("the file is copied");
        }
    }
    copy
}

/// Inventories of 36 slots, 20 of them filled, and random changes to them.
struct World {
    random: fastrand::Rng,
    states: Vec<Arc<Inventory>>,
    /// Where the chains of the inventories begin, which the engine knows as well.
    heads: Vec<HeadBefore>,
    /// The inventories that the current batch has changed, in order.
    changed: Vec<usize>,
    caller: Caller,
    key_ms: u64,
}

impl World {
    fn new(inventories: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let states = (0..inventories).map(|number| inventory(number, &mut random)).collect();
        Self {
            random,
            states,
            heads: vec![HeadBefore::Known(ChainHead::default()); inventories],
            changed: Vec::new(),
            caller: Caller::new("game-server-1").expect("a valid name"),
            key_ms: 1_700_000_000_000,
        }
    }

    fn create_all(&mut self, store: &EmbeddedStore) {
        let states: Vec<_> = self.states.iter().cloned().enumerate().collect();
        for chunk in states.chunks(1_000) {
            let created = chunk.iter().map(|(number, state)| {
                let mut flows = Flows::default();
                flows.add_stacks(state.contents.stacks().map(|(_, stack)| stack));
                let touched = TouchedInventory {
                    version: state.version(),
                    before: None,
                    state: Some(state.clone()),
                    edits: Vec::new(),
                };
                self.transaction(*number, OperationKind::Create, flows.into_vec(), touched)
            });
            let batch: Vec<_> = created.collect();
            let heads = store.commit(&batch).expect("the batch commits");
            self.committed(&heads);
        }
    }

    /// Remembers the heads after the current batch.
    fn committed(&mut self, heads: &[ChainHead]) {
        for (number, head) in self.changed.drain(..).zip(heads) {
            self.heads[number] = HeadBefore::Known(*head);
        }
    }

    fn changes(&mut self, batch: usize) -> Vec<MutationRecord> {
        self.changes_among(batch, self.states.len())
    }

    /// Creates changes of random inventories among the first `hot`.
    fn changes_among(&mut self, batch: usize, hot: usize) -> Vec<MutationRecord> {
        (0..batch).map(|_| self.change(hot)).collect()
    }

    fn change(&mut self, hot: usize) -> MutationRecord {
        let number = self.random.usize(..hot);
        let edits: Vec<Edit> = vec![(Slot(self.random.u16(..36)), stack(&mut self.random))];
        let state = Arc::new(self.states[number].advanced(&edits));
        let before = std::mem::replace(&mut self.states[number], state.clone());
        let mut flows = Flows::default();
        flows.remove_stacks(edits.iter().filter_map(|(slot, _)| before.contents.stack(*slot)));
        flows.add_stacks(edits.iter().filter_map(|(_, stack)| stack.as_ref()));
        let touched = TouchedInventory { version: state.version(), before: Some(before), state: Some(state), edits };
        self.transaction(number, OperationKind::Set, flows.into_vec(), touched)
    }

    fn transaction(
        &mut self,
        number: usize,
        kind: OperationKind,
        flows: Vec<Flow>,
        touched: TouchedInventory,
    ) -> MutationRecord {
        let head = std::mem::replace(&mut self.heads[number], HeadBefore::InBatch(self.changed.len()));
        self.changed.push(number);
        self.key_ms += 1;
        let (high, low) = (self.key_ms >> 16, self.key_ms & 0xFFFF);
        let key =
            format!("{high:08x}-{low:04x}-7{:03x}-8{:03x}-{:012x}", self.random.u16(..4096), 7, self.random.u32(..));
        let key = ScopedKey { caller: self.caller.clone(), key: IdempotencyKey::new(&key).expect("a valid name") };
        let reply = Reply {
            outcomes: vec![OperationOutcome { count: 5, ..OperationOutcome::default() }],
            versions: vec![touched.version.clone()],
        };
        MutationRecord {
            key,
            payload: Fingerprint(self.random.u64(..)),
            reason: Arc::from(""),
            session: None,
            prediction: PredictionOutcome::Unpredicted,
            operations: vec![kind],
            flows,
            reply,
            touched: vec![touched],
            heads: vec![head],
        }
    }

    /// Asserts that a sample of the inventories has the expected state.
    fn check(&mut self, store: &EmbeddedStore) {
        let sample: Vec<Arc<Inventory>> =
            (0..1_000).map(|_| self.states[self.random.usize(..self.states.len())].clone()).collect();
        let ids: Vec<InventoryId> = sample.iter().map(|state| state.id.clone()).collect();
        let loaded = store.load(&ids, &[]).expect("the inventories load");
        assert!(
            loaded.inventories.into_iter().flatten().eq(sample),
            "a stored inventory differs from its expected state"
        );
    }
}

fn inventory(number: usize, random: &mut fastrand::Rng) -> Arc<Inventory> {
    // Scrambled, because players do not arrive in the order of their ids.
    let name = format!("player-{:016x}", (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let edits: Vec<Edit> = (0..20).map(|slot| (Slot(slot), stack(random))).collect();
    Arc::new(Inventory {
        id: InventoryId::new(&name).expect("a valid name"),
        owner: PlayerId::new(&name).ok(),
        layout: LayoutId::new("player").expect("a valid name"),
        epoch: Epoch::new(random.u32(1..)).expect("not 0"),
        contents: Contents::new(36, Revision::CREATED, &edits),
    })
}

fn stack(random: &mut fastrand::Rng) -> Option<Stack> {
    let item = ItemCode::new(random.u32(1..2_000))?;
    Some(Stack { item, count: Count::new(random.u32(1..65))?, attributes: Attributes::NONE })
}
