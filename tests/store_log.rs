//! Distinguishes a damaged write-ahead log from a torn one: no acknowledged commit is lost silently, and no crash is
//! refused.

mod store_support;

use slotcast::domain::catalog::CatalogSource;
use slotcast::domain::{Catalog, Epoch, Slot};
use slotcast::store::embedded::tools::{self, Snapshot, ToolError};
use slotcast::store::embedded::{EmbeddedSettings, EmbeddedStore, OpenError};
use slotcast::store::{KeyStatus, ListQuery, Store};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use store_support::*;

const HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24 + 4096;

/// The files of a store at one moment.
#[derive(Clone)]
struct Image {
    database: Vec<u8>,
    log: Vec<u8>,
}

impl Image {
    fn of(store: &EmbeddedStore, place: &Place) -> Self {
        store.with_writes_paused(|| Self::at(&place.path()))
    }

    fn at(path: &Path) -> Self {
        Self {
            database: std::fs::read(path).expect("it is there"),
            log: std::fs::read(log_of(path)).unwrap_or_default(),
        }
    }

    fn write(&self, place: &Place) {
        // The index of another log would be taken for this one's.
        let _ = std::fs::remove_file(format!("{}-shm", place.path().display()));
        std::fs::write(place.path(), &self.database).expect("it is written");
        std::fs::write(log_of(&place.path()), &self.log).expect("it is written");
    }

    fn open(&self, place: &Place) -> Result<EmbeddedStore, OpenError> {
        self.write(place);
        EmbeddedStore::open(&place.path(), place.clock.settings())
    }

    fn flipped(&self, byte: usize, bit: u32) -> Self {
        let mut flipped = self.clone();
        flipped.log[byte] ^= 1 << bit;
        flipped
    }

    fn frames(&self) -> usize {
        (self.log.len() - HEADER_BYTES) / FRAME_BYTES
    }
}

fn log_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", path.display()))
}

/// The last journal row of an open store that has trimmed none.
fn last_row(store: &EmbeddedStore) -> usize {
    store.statistics().journal_rows
}

fn epochs() -> impl FnMut() -> Epoch {
    let mut next = 1_000_000;
    move || {
        next += 1;
        epoch(next)
    }
}

fn checkpoint(place: &Place, mode: &str) {
    let connection = rusqlite::Connection::open(place.path()).expect("it opens");
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).expect("it is copied");
}

/// Random commits, folded now and then, none of them copied into the database file; with what each of them left.
fn history(seed: u64, commits: usize, folds_every: usize) -> (Image, Vec<Model>) {
    let place = Place::new();
    let store = place.open();
    let mut history = History::new(seed, 12);
    let mut models = vec![history.model.clone()];
    for number in 1..=commits {
        store.commit(&history.batch()).expect("it commits");
        models.push(history.model.clone());
        if number % folds_every == 0 {
            store.fold().expect("it folds");
        }
    }
    (Image::of(&store, &place), models)
}

#[test]
fn a_flipped_bit_before_an_acknowledged_commit_is_refused_and_changes_no_file() {
    let (image, models) = history(1, 24, 5);
    let place = Place::new();
    let commits = models.len() - 1;
    let mut refused = 0;
    for frame in 0..image.frames() {
        let begin = HEADER_BYTES + frame * FRAME_BYTES;
        let mut cut = image.clone();
        cut.log.truncate(begin);
        let readable = last_row(&cut.open(&place).expect("a log that ends early is torn"));
        // Page number, size after commit, salts, checksums, contents.
        for byte in [3, 7, 8, 15, 16, 23, 24, 24 + 7, 24 + 4000] {
            let damaged = image.flipped(begin + byte, 1);
            match damaged.open(&place) {
                Ok(store) => {
                    assert!(
                        readable + 1 >= commits,
                        "frame {frame}, byte {byte}: only {readable} of {commits} are left"
                    );
                    models[readable].check_inventories(&store);
                }
                Err(OpenError::DamagedWal { damage, .. }) => {
                    refused += 1;
                    assert!(readable < commits, "nothing would be lost");
                    // A salt or a checksum is that of its own frame.
                    assert_eq!((damage.frame, damage.offset_bytes), (frame as u64 + 1, begin as u64));
                    // The newest commit may be unacknowledged, and the first one of all unrecognizable.
                    let (lost, unknown) = ((commits - readable) as u64, 1 + u64::from(readable == 0));
                    assert!(
                        damage.commits_min <= lost && damage.commits_min + unknown >= lost,
                        "{} of {lost}",
                        damage.commits_min
                    );
                    let left = Image::at(&place.path());
                    assert!(left.database == damaged.database && left.log == damaged.log, "no file is changed");
                }
                Err(error) => panic!("frame {frame}, byte {byte}: {error}"),
            }
        }
    }
    assert!(refused > 9 * (image.frames() - 4), "{refused} of {} frames", image.frames());
}

#[test]
fn the_error_names_the_file_the_position_and_both_ways_to_recover() {
    let (image, _) = history(2, 9, 100);
    let place = Place::new();
    let refusal = image.flipped(HEADER_BYTES + 2 * FRAME_BYTES + 99, 0).open(&place).expect_err("it is damaged");
    let message = refusal.to_string();
    for expected in [
        "slotcast.db-wal, the write-ahead log, is damaged at frame 3 (byte 8272)",
        "acknowledged commits after it",
        "`slotcast restore --force`",
        "`slotcast serve --accept-loss`",
    ] {
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn a_flipped_bit_in_the_header_of_the_log_is_refused() {
    let (image, _) = history(3, 5, 100);
    let place = Place::new();
    for byte in 0..HEADER_BYTES {
        let refused = image.flipped(byte, (byte % 8) as u32).open(&place).err();
        assert!(
            matches!(refused, Some(OpenError::DamagedWal { damage, .. }) if damage.frame == 0),
            "{byte}: {refused:?}"
        );
    }
    let (image, _) = history(3, 1, 100);
    let refused = image.flipped(13, 0).open(&place).err();
    assert!(matches!(refused, Some(OpenError::DamagedWal { .. })), "one commit is enough: {refused:?}");
}

/// As a lost block leaves it: neither the header nor the first frames tell which use of the file the log is.
#[test]
fn a_log_that_begins_with_zeros_or_noise_is_refused_as_damaged() {
    let (image, _) = history(3, 12, 100);
    let place = Place::new();
    for bytes in [HEADER_BYTES + 16, HEADER_BYTES + FRAME_BYTES, 2 * 4096, 3 * 4096, 5 * FRAME_BYTES] {
        for noise in [0, 0x5A] {
            let mut lost = image.clone();
            lost.log[..bytes].fill(noise);
            let refused = lost.open(&place).err();
            assert!(
                matches!(refused, Some(OpenError::DamagedWal { damage, .. }) if damage.frame == 0),
                "{bytes} bytes of {noise}: {refused:?}"
            );
        }
    }
}

/// The newest commit may have been under way when the machine stopped.
#[test]
fn damage_in_the_last_commit_is_a_torn_write() {
    let (image, models) = history(4, 12, 100);
    let place = Place::new();
    let begin = HEADER_BYTES + (image.frames() - 1) * FRAME_BYTES;
    for byte in [0, 7, 9, 17, 24, 1000] {
        let store = image.flipped(begin + byte, 3).open(&place).expect("it opens");
        models[11].check(&store);
    }
}

/// The last commit, then folding, then nothing: what was written behind the commit shows that it had been acknowledged.
#[test]
fn damage_in_the_last_commit_is_refused_if_more_was_written_after_it() {
    let place = Place::new();
    let store = place.open();
    let state = inventory("chest", None, 1, 9, &[(Slot(0), stack(1, 5))]);
    store.commit(&[transaction(key("1"), vec![created(&state)])]).expect("it commits");
    let frames = Image::of(&store, &place).frames();
    store.commit(&[transaction(key("2"), vec![updated(&state, vec![(Slot(1), stack(1, 6))])])]).expect("it commits");
    store.fold().expect("it folds");
    let image = Image::of(&store, &place);
    let elsewhere = Place::new();
    let refused = image.flipped(HEADER_BYTES + frames * FRAME_BYTES + 4_000, 0).open(&elsewhere).err();
    assert!(matches!(refused, Some(OpenError::DamagedWal { damage, .. }) if damage.commits_min == 1), "{refused:?}");
}

#[test]
fn a_fully_checkpointed_log_may_be_unreadable_completely_but_not_in_part() {
    let place = Place::new();
    let store = place.open();
    let mut history = History::new(5, 9);
    for _ in 0..9 {
        store.commit(&history.batch()).expect("it commits");
        store.fold().expect("it folds");
    }
    checkpoint(&place, "PASSIVE");
    let image = Image::of(&store, &place);
    let elsewhere = Place::new();
    for byte in [0, 9, 17, 30, HEADER_BYTES + 20, HEADER_BYTES + 99] {
        history.model.check(&image.flipped(byte, 0).open(&elsewhere).expect("nothing is lost"));
    }
    // SQLite would use old pages of the log beside new ones of the database.
    let middle = HEADER_BYTES + image.frames() / 2 * FRAME_BYTES + 99;
    let refused = image.flipped(middle, 0).open(&elsewhere).err();
    assert!(matches!(refused, Some(OpenError::DamagedWal { .. })), "{refused:?}");
}

/// Everything behind the last synced commit may be there, in part, in any order of blocks, over zeros or over what an
/// earlier use of the log had there: the fold's transactions, and one commit.
#[test]
fn unsynced_writes_may_be_torn_in_any_order_of_blocks() {
    let mut random = fastrand::Rng::with_seed(6);
    for seed in 0..30 {
        let place = Place::new();
        let store = place.open();
        let mut history = History::new(600 + seed, 10);
        for _ in 0..random.usize(1..20) {
            store.commit(&history.batch()).expect("it commits");
        }
        if random.bool() {
            store.fold().expect("it folds");
            // The next write begins at the beginning of the log.
            checkpoint(&place, "RESTART");
        }
        for _ in 0..random.usize(1..6) {
            store.commit(&history.batch()).expect("it commits");
        }
        let (before, synced) = (Image::of(&store, &place), history.model.clone());
        if random.u32(..4) > 0 {
            store.fold().expect("it folds");
        }
        if random.bool() {
            store.commit(&history.batch()).expect("it commits");
        }
        let after = Image::of(&store, &place);
        assert!(before.database == after.database, "nothing was copied meanwhile");
        for _ in 0..12 {
            let torn = torn(&before, &after, &mut random);
            opens_to_one_of(&torn, [&synced, &history.model]);
        }
    }
}

fn torn(before: &Image, after: &Image, random: &mut fastrand::Rng) -> Image {
    let mut torn = before.clone();
    torn.log.resize(after.log.len(), 0);
    let blocks = torn.log.chunks_mut(512).zip(after.log.chunks(512));
    let share = random.u32(..9);
    for (block, written) in blocks {
        if random.u32(..8) < share {
            block.copy_from_slice(written);
        }
    }
    torn
}

/// And again after it went on and stopped once more, over the remains of the torn writes.
fn opens_to_one_of(torn: &Image, models: [&Model; 2]) {
    let place = Place::new();
    let store = torn.open(&place).expect("a torn log opens");
    let found = list_all(&store, ListQuery { limit: 100, ..ListQuery::default() });
    let model = models.into_iter().find(|model| model.inventories.values().eq(&found)).expect("it is a commit");
    model.check_inventories(&store);
    let state = inventory("another", None, 77, 9, &[]);
    store.commit(&[transaction(key("another"), vec![created(&state)])]).expect("it goes on");
    let again = Place::new();
    let store = Image::of(&store, &place).open(&again).expect("the remains of a torn write are no damage");
    assert_eq!(store.load(std::slice::from_ref(&state.id), &[]).expect("it loads").inventories, [Some(state)]);
}

#[test]
fn accepting_the_loss_assigns_new_epochs_and_keeps_the_remaining_keys_and_the_damaged_files() {
    let (image, models) = history(7, 20, 6);
    let place = Place::new();
    let damaged = image.flipped(HEADER_BYTES + image.frames() / 2 * FRAME_BYTES + 200, 5);
    damaged.write(&place);
    let refused = Snapshot::open(&place.path());
    assert!(matches!(refused, Err(OpenError::DamagedWal { .. })), "{refused:?}");
    let mut quiet = |_| ControlFlow::Continue(());
    let accepted = tools::accept_loss(&place.path(), 77, &mut epochs(), &mut quiet).expect("it is accepted");
    let accepted = accepted.expect("there is damage");
    let kept = accepted.old_store.expect("it was there");
    assert_eq!(kept, place.folder.path().canonicalize().expect("it is there").join("slotcast.db.damaged-77"));
    let left = Image::at(&kept);
    assert!(left.database == damaged.database && left.log == damaged.log, "the damaged files are kept");

    let store = place.open();
    let (kept, all) = (&models[accepted.last_seq as usize], &models[20]);
    assert!(accepted.last_seq < 19 && accepted.damage.commits_min >= 19 - accepted.last_seq as u64);
    let found = list_all(&store, ListQuery { limit: 100, ..ListQuery::default() });
    assert_eq!(found.len() as u64, accepted.inventories);
    assert_eq!(found.len(), kept.inventories.len());
    for (found, was) in found.iter().zip(kept.inventories.values()) {
        assert_eq!((&found.id, found.contents.digest()), (&was.id, was.contents.digest()));
        assert!(found.epoch != was.epoch && found.epoch.get() > 1_000_000, "{:?}", found.epoch);
    }
    for (key, reply) in &all.keys {
        let recalled = store.load(&[], std::slice::from_ref(key)).expect("it loads").key_statuses.remove(0);
        let is_left = kept.keys.contains_key(key);
        assert_eq!(recalled, if is_left { reply.clone() } else { KeyStatus::New }, "{key:?}");
    }
    drop(store);
    let again = tools::accept_loss(&place.path(), 78, &mut epochs(), &mut quiet).expect("it is sound");
    assert_eq!(again, None, "without damage nothing is done");
}

#[test]
fn accepting_the_loss_is_refused_if_more_than_the_log_is_damaged() {
    let (image, _) = history(8, 12, 100);
    let place = Place::new();
    let mut damaged = image.flipped(HEADER_BYTES + 5 * FRAME_BYTES + 200, 5);
    // The pages of the table, behind those that the log begins with.
    let half = damaged.database.len() / 2;
    damaged.database[half..].fill(0xAA);
    damaged.write(&place);
    let mut quiet = |_| ControlFlow::Continue(());
    let refused = tools::accept_loss(&place.path(), 77, &mut epochs(), &mut quiet);
    assert!(
        matches!(refused, Err(ToolError::Corrupt { .. } | ToolError::Open(_) | ToolError::Store(_))),
        "{refused:?}"
    );
    let left = Image::at(&place.path());
    assert!(left.database == damaged.database && left.log == damaged.log, "no file is changed");
}

#[test]
fn a_database_beside_the_log_of_another_one_is_refused_and_no_file_is_changed() {
    let (image, _) = history(9, 30, 7);
    let place = Place::new();
    let store = place.open();
    store.commit(&[transaction(key("1"), vec![])]).expect("it commits");
    let backup = place.folder.path().join("backup.db");
    let mut quiet = |_| ControlFlow::Continue(());
    tools::backup(&Snapshot::open(&place.path()).expect("it opens"), &backup, false, &mut quiet).expect("it is copied");
    store.close().expect("it closes");
    let closed = std::fs::read(place.path()).expect("it is there");
    for database in [std::fs::read(&backup).expect("it is there"), closed] {
        let mixed = Image { database, log: image.log.clone() };
        let elsewhere = Place::new();
        let refused = mixed.open(&elsewhere).err();

        assert!(matches!(refused, Some(OpenError::ForeignWal { .. })), "{refused:?}");
        let left = Image::at(&elsewhere.path());
        assert!(left.database == mixed.database && left.log == mixed.log, "no file is changed");
    }
    let mut other_pages = image.clone();
    let connection = rusqlite::Connection::open(place.folder.path().join("other.db")).expect("it opens");
    connection
        .execute_batch("PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; CREATE TABLE t (a)")
        .expect("it is made");
    other_pages.log = std::fs::read(place.folder.path().join("other.db-wal")).expect("it is there");
    let refused = other_pages.open(&Place::new()).err();
    assert!(matches!(refused, Some(OpenError::ForeignWal { .. })), "{refused:?}");
}

/// Items by id and code; each was renamed from `before`, if that is given.
fn catalog(items: &[(&str, u32)], before: Option<&str>) -> Catalog {
    let items: Vec<_> = items.iter().map(|(id, code)| ((*id).to_owned(), *code, 64)).collect();
    let ids: Vec<String> = items.iter().map(|(id, ..)| id.clone()).collect();
    let catalog = Catalog::new(CatalogSource { items, ..CatalogSource::default() }).expect("it is valid");
    catalog.with_renamed(ids.iter().filter_map(|id| Some((id.as_str(), before?))))
}

#[test]
fn catalog_codes_in_the_log_do_not_count_as_commits() {
    let place = Place::new();
    let store = place.open();
    store.accept_catalog(&catalog(&[("coal", 1), ("sand", 1_000_000)], None)).expect("it is accepted");
    for number in 0..9 {
        store.commit(&[transaction(key(&number.to_string()), vec![])]).expect("it commits");
    }
    let image = Image::of(&store, &place);
    drop(store);
    let damaged = image.flipped(image.log.len() - 3 * FRAME_BYTES + 2_000, 1);
    let elsewhere = Place::new();
    let refused = damaged.open(&elsewhere).err();
    assert!(matches!(refused, Some(OpenError::DamagedWal { damage, .. }) if damage.commits_min >= 2), "{refused:?}");
}

#[test]
fn a_log_with_renamed_items_is_accepted_after_a_crash() {
    let place = Place::new();
    let store = place.open();
    store.accept_catalog(&catalog(&[("coal", 1)], None)).expect("it is accepted");
    store.close().expect("it closes");
    let store = place.open();
    store.accept_catalog(&catalog(&[("charcoal", 1)], Some("coal"))).expect("it is accepted");
    store.commit(&[transaction(key("1"), vec![])]).expect("it commits");
    let image = Image::of(&store, &place);
    drop(store);
    let opened = image.open(&Place::new()).expect("a crash is no damage");
    opened.accept_catalog(&catalog(&[("charcoal", 1)], None)).expect("the new id is remembered");
}

#[test]
fn a_crash_during_folds_and_checkpoints_is_never_reported_as_damage() {
    let place = Place::new();
    let settings = EmbeddedSettings {
        round_records: 20,
        round_inventories: 10,
        wal_checkpoint_bytes: 64 << 10,
        keys_max: 40,
        ..EmbeddedSettings::default()
    };
    let store = place.open_with(settings);
    let mut history = History::new(10, 40);
    for _ in 0..60 {
        for _ in 0..history.random.usize(1..9) {
            store.commit(&history.batch()).expect("it commits");
        }
        let elsewhere = Place::new();
        let opened = Image::of(&store, &place).open(&elsewhere).expect("it opens");
        history.model.check_inventories(&opened);
        assert!(Snapshot::open(&place.path()).is_ok(), "a running store is not taken for damaged either");
    }
}
