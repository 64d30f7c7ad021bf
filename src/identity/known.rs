//! Who has been verified, kept for as long as the keys hold: a game server sends the same token on every call.

use super::Role;
use super::keys::Key;
use crate::domain::{Caller, PlayerId};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::time::Instant;

/// What is verified anew when there are more; all are forgotten then.
const KNOWN_MAX: usize = 8_192;
/// A longer proof is verified each time, so that memory is bounded to 16 MiB.
const KNOWN_BYTES_MAX: usize = 2_048;

/// Whom a proof has shown.
#[derive(Debug)]
pub(super) struct Person {
    pub caller: Caller,
    /// Of a player: itself.
    pub player: Option<PlayerId>,
    pub role: Role,
    /// When the proof ends, in milliseconds since 1970, the leeway included.
    pub until_ms: u64,
    /// The same by a clock that nobody can set, as reckoned when the proof was first seen.
    pub deadline: Instant,
    /// What has signed it; none of a certificate.
    pub key: Option<Arc<Key>>,
}

/// By the bytes of the proof.
#[derive(Default)]
pub(super) struct Known(RwLock<HashMap<Box<[u8]>, Arc<Person>>>);

impl Known {
    pub fn get(&self, proof: &[u8]) -> Option<Arc<Person>> {
        // It is only ever replaced as a whole, so a panic elsewhere spoils nothing.
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(proof).cloned()
    }

    pub fn insert(&self, proof: &[u8], person: Arc<Person>) {
        if proof.len() > KNOWN_BYTES_MAX {
            return;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(proof.into(), person);
    }
}

/// Tokens are told to nobody.
impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_kept_as_there_is_room_for_and_no_long_ones() {
        let person = Arc::new(Person {
            caller: Caller::new("lobby").expect("a name"),
            player: None,
            role: Role::Service,
            until_ms: 0,
            deadline: Instant::now(),
            key: None,
        });
        let known = Known::default();
        known.insert(&[b'x'; KNOWN_BYTES_MAX + 1], person.clone());
        assert!(known.get(&[b'x'; KNOWN_BYTES_MAX + 1]).is_none());
        for number in 0..=KNOWN_MAX {
            known.insert(&number.to_le_bytes(), person.clone());
        }
        assert!(known.get(&KNOWN_MAX.to_le_bytes()).is_some());
        assert!(known.get(&0_usize.to_le_bytes()).is_none(), "all but the newest were forgotten");
        assert!(!format!("{known:?}").contains("lobby"));
    }
}
