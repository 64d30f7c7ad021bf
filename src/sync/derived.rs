//! Values that are derived from a published state when a stream first needs them, and shared by all streams.

use super::frame::FrameBody;
use std::sync::{Arc, OnceLock};

/// The derived values of one published state. They are ignored in comparisons, and a copy of the state computes them
/// again.
#[derive(Debug, Default)]
pub(super) struct DerivedValues {
    full_bytes: OnceLock<u32>,
    /// The first frame that a stream needed.
    first: OnceLock<FrameBody>,
    /// The encoding of `first`, once a second stream needs it.
    encoded: OnceLock<Arc<[u8]>>,
}

impl DerivedValues {
    /// Returns the size of the full state; computes it if no stream has needed it before.
    pub fn full_bytes(&self, compute: impl FnOnce() -> usize) -> usize {
        *self.full_bytes.get_or_init(|| compute() as u32) as usize
    }

    /// Returns the shared encoding of the frame with this body. Returns `None` to the first stream that needs such a
    /// frame, because most inventories have one reader, and to streams that need another frame: they encode it
    /// themselves.
    pub fn encoded(&self, body: FrameBody, encode: impl FnOnce() -> Arc<[u8]>) -> Option<Arc<[u8]>> {
        let mut is_first = false;
        let first = self.first.get_or_init(|| {
            is_first = true;
            body
        });
        (!is_first && *first == body).then(|| self.encoded.get_or_init(encode).clone())
    }
}

impl Clone for DerivedValues {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for DerivedValues {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for DerivedValues {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Revision;

    #[test]
    fn a_frame_is_encoded_for_the_second_reader_and_shared_by_later_ones() {
        let delta = |base| FrameBody::Delta { last_sent: Revision(1), base: Revision(base), revision: Revision(9) };
        let (values, mut encodings) = (DerivedValues::default(), 0);
        let mut read = |base| {
            let shared = values.encoded(delta(base), || {
                encodings += 1;
                Arc::from([7].as_slice())
            });
            shared.map(|shared| shared.to_vec())
        };
        assert_eq!([read(8), read(3), read(8), read(8), read(3)], [None, None, Some(vec![7]), Some(vec![7]), None]);
        assert_eq!(encodings, 1);
    }
}
