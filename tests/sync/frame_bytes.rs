//! Frames that are encoded straight into bytes equal the encoded messages, and computed sizes equal encoded sizes.

use crate::support::random::{config, history};
use proptest::prelude::*;
use prost::Message;
use slotcast::domain::{Caller, Inventory, InventoryLookup, KeyTag, Revision, SessionId};
use slotcast::sync::frame::full_frame;
use slotcast::sync::{ChangeKind, ChangeRecord, Cursor, Frame, FrameBody, FullReason, InventoryFrame, frame_since};
use slotcast::wire::{frame, frame_bytes};
use std::sync::Arc;

/// gRPC's prefix of each message, in bytes.
const PREFIX_BYTES: usize = 5;

fn position() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0_usize), 1 => 1_usize..300]
}

/// What a frame reports beside its changes.
#[derive(Debug, Clone)]
struct Report {
    caught_up: bool,
    keys: Vec<u32>,
    notices: Vec<(usize, String)>,
    dropped: u64,
    absent: Vec<usize>,
    versions: bool,
}

fn report() -> impl Strategy<Value = Report> {
    let notices = prop::collection::vec((position(), "[a-zé]{0,200}"), 0..3);
    let keys = prop::collection::vec(any::<u32>(), 0..40);
    let dropped = prop_oneof![Just(0), any::<u64>()];
    let absent = prop::collection::vec(position(), 0..3);
    (any::<bool>(), keys, notices, dropped, absent, any::<bool>()).prop_map(
        |(caught_up, keys, notices, dropped, absent, versions)| Report {
            caught_up,
            keys,
            notices,
            dropped,
            absent,
            versions,
        },
    )
}

impl Report {
    fn add_to(&self, frame: &mut Frame, inventory: &Inventory) {
        let session = SessionId::new("session").unwrap();
        let record = |reason: &str| ChangeRecord {
            reason: reason.into(),
            kind: ChangeKind::Craft,
            ..ChangeRecord::correction(session.clone(), Caller::new("lobby").unwrap(), inventory)
        };
        frame.caught_up = self.caught_up;
        frame.included_keys = self.keys.iter().copied().map(KeyTag).collect();
        frame.notices = self.notices.iter().map(|(at, reason)| (*at, Arc::new(record(reason)))).collect();
        frame.notices_dropped = self.dropped;
        frame.absent.clone_from(&self.absent);
        frame.versions = if self.versions { vec![(0, inventory.version()), (3, inventory.version())] } else { vec![] };
    }
}

/// Moves the revisions of a delta far ahead, and the revision that was last sent back by `skipped`.
fn moved(mut part: InventoryFrame, ahead: u64, skipped: u64) -> InventoryFrame {
    match &mut part.body {
        FrameBody::Delta { last_sent, base, revision } => {
            let advance = revision.0 - base.0;
            *base = Revision(base.0 + ahead + skipped);
            (*last_sent, *revision) = (Revision(base.0 - skipped), Revision(base.0 + advance));
        }
        FrameBody::Full { revision, .. } => *revision = Revision(revision.0 + ahead),
    }
    part
}

fn check_encoding(frame: &Frame) -> Result<(), TestCaseError> {
    let (bytes, message) = (frame_bytes::encode(frame), frame::encode_frame(frame).encode_to_vec());
    prop_assert_eq!(&bytes[PREFIX_BYTES..], &message[..]);
    let mut prefix = vec![0];
    prefix.extend((message.len() as u32).to_be_bytes());
    prop_assert_eq!(&bytes[..PREFIX_BYTES], &prefix[..]);
    Ok(())
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn a_frame_in_bytes_is_the_encoded_message(
        history in history(),
        delta_slots_max in 0_usize..12,
        positions in prop::collection::vec(position(), 4),
        ahead in prop_oneof![Just(0_u64), 0_u64..1 << 40],
        skipped in prop_oneof![Just(0_u64), 0_u64..300],
        report in report(),
    ) {
        let mut world = history.world;
        let before: Vec<_> = world.inventories.values().cloned().collect();
        for mutation in &history.mutations {
            let _ = world.mutate(mutation);
        }
        let mut frame = Frame::default();
        for (then, position) in before.iter().zip(positions) {
            let Some(now) = world.inventory(&then.id) else { continue };
            let cursors = [None, Some(Cursor::of(then)), Some(Cursor::of(&now))];
            for part in cursors.into_iter().filter_map(|cursor| frame_since(&now, cursor, delta_slots_max)) {
                frame.changed.push((position, moved(part, ahead, skipped)));
                let one = Frame { changed: frame.changed[frame.changed.len() - 1..].to_vec(), ..Frame::default() };
                check_encoding(&one)?;
            }
        }
        check_encoding(&frame)?;
        // A world may begin without inventories.
        if let Some(first) = before.first() {
            report.add_to(&mut frame, first);
            check_encoding(&frame)?;
        }
    }

    #[test]
    fn the_computed_size_of_an_immediate_full_sync_is_that_of_its_message(
        history in history(),
        absent in prop::collection::vec(any::<bool>(), 4),
    ) {
        let mut world = history.world;
        for mutation in &history.mutations {
            let _ = world.mutate(mutation);
        }
        let mut initial = Frame { caught_up: true, ..Frame::default() };
        let mut sizes = Vec::new();
        for (position, (inventory, absent)) in world.inventories.values().zip(absent).enumerate() {
            let part = full_frame(inventory.epoch, &inventory.contents, FullReason::DeltaOff);
            let one = Frame { changed: vec![(position, part.clone())], ..Frame::default() };
            let body_bytes = frame_bytes::full_body_bytes(inventory);
            prop_assert_eq!(frame_bytes::change_bytes(position, body_bytes), frame::encode_frame(&one).encoded_len());
            sizes.push((!absent).then_some(body_bytes));
            if absent {
                initial.absent.push(position);
            } else {
                initial.changed.push((position, part));
            }
        }
        prop_assert_eq!(frame_bytes::initial_bytes(sizes.into_iter()), frame_bytes::encode(&initial).len());
    }
}
