//! Since when a reader is behind, and by what: as its frames say it.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use slotcast::domain::{Contents, Epoch, Inventory, InventoryId, LayoutId, Revision};
use slotcast::sync::{
    Frame, Published, PublishedState, SubscribeOptions, Subscription, SyncSettings, TraceContext, TracedChange,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

/// One inventory, changed at moments of the test's own.
struct Followed {
    start: Instant,
    state: PublishedState,
    revision: u64,
}

fn inventory(revision: u64) -> Arc<Inventory> {
    Arc::new(Inventory {
        id: InventoryId::new("chest").unwrap(),
        owner: None,
        layout: LayoutId::new("chest").unwrap(),
        epoch: Epoch::new(1).unwrap(),
        contents: Contents::new(3, Revision(revision), &[]),
    })
}

fn cause(n: u8) -> TraceContext {
    TraceContext { trace_id: [n; 16], span_id: [n; 8] }
}

impl Followed {
    fn new() -> Self {
        Self { start: Instant::now(), state: Arc::new(Published::new(Some(inventory(1)))), revision: 1 }
    }

    fn change(&mut self, at_ms: u32, cause: Option<TraceContext>) {
        self.revision += 1;
        let next = self.state.followed_by(Some(inventory(self.revision)), []);
        self.state = Arc::new(next.superseding(&self.state, self.at(at_ms), cause));
    }

    /// Published anew, as a correction of some session is, without a change.
    fn note(&mut self, at_ms: u32) {
        let next = self.state.followed_by(Some(inventory(self.revision)), []);
        self.state = Arc::new(next.superseding(&self.state, self.at(at_ms), None));
    }

    fn at(&self, at_ms: u32) -> Instant {
        self.start + at_ms * MS
    }

    fn frame(&self, reader: &mut Subscription, at_ms: u32) -> Option<Frame> {
        let states = vec![self.state.clone()];
        reader.handle_states(&states);
        reader.poll_frame(at_ms * MS, || states.clone()).unwrap()
    }

    /// A reader that has what there is.
    fn caught_up(&self) -> Subscription {
        let options = SubscribeOptions { resume: vec![None], ..SubscribeOptions::default() };
        let mut reader = Subscription::new(SyncSettings::immediate_full(), options);
        let first = self.frame(&mut reader, 0).unwrap();
        assert_eq!((first.stale_since, first.traced), (None, None), "the first frame makes up for no commit");
        reader
    }
}

#[test]
fn a_frame_is_as_old_as_the_first_change_after_what_its_reader_has_however_many_there_were() {
    let mut followed = Followed::new();
    followed.change(1, Some(cause(1)));
    let (mut prompt, mut stalled) = (followed.caught_up(), followed.caught_up());
    for at_ms in 10..1_000 {
        followed.change(at_ms, (at_ms == 500).then(|| cause(2)));
        let frame = followed.frame(&mut prompt, at_ms).unwrap();
        assert_eq!(frame.stale_since, Some(followed.at(at_ms)));
        let traced = TracedChange { at: followed.at(500), trace: cause(2) };
        assert_eq!(frame.traced, (at_ms == 500).then_some(traced), "only what is new to it is its cause");
    }
    let frame = followed.frame(&mut stalled, 1_000).unwrap();
    assert_eq!(frame.stale_since, Some(followed.at(10)), "the oldest");
    assert_eq!(frame.traced.unwrap().trace, cause(2), "the newest that is traced");
    assert!(followed.frame(&mut stalled, 1_001).is_none());
    followed.change(1_100, Some(cause(3)));
    let frame = followed.frame(&mut stalled, 1_100).unwrap();
    assert_eq!((frame.stale_since, frame.traced.unwrap().trace), (Some(followed.at(1_100)), cause(3)));
}

#[test]
fn what_is_published_without_a_change_makes_no_reader_older() {
    let mut followed = Followed::new();
    let mut reader = followed.caught_up();
    followed.note(100);
    assert!(followed.frame(&mut reader, 200).is_none());
    followed.change(300, None);
    let frame = followed.frame(&mut reader, 300).unwrap();
    assert_eq!((frame.stale_since, frame.traced), (Some(followed.at(300)), None));
}

#[test]
fn a_reader_that_resumes_and_misses_nothing_counts_from_the_next_change() {
    let mut followed = Followed::new();
    let cursor = slotcast::sync::Cursor { epoch: Epoch::new(1).unwrap(), revision: Revision(1) };
    let options = SubscribeOptions { resume: vec![Some(cursor)], ..SubscribeOptions::default() };
    let mut reader = Subscription::new(SyncSettings::immediate_full(), options);
    assert!(followed.frame(&mut reader, 0).unwrap().changed.is_empty());
    followed.change(10, None);
    followed.change(20, None);
    assert_eq!(followed.frame(&mut reader, 30).unwrap().stale_since, Some(followed.at(10)));
}
