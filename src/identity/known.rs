//! Callers with a verified proof, cached while the keys are valid: a game server sends the same token with every call.

use super::Role;
use super::keys::Key;
use crate::domain::{Caller, PlayerId};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::fmt;
use std::sync::Arc;
use tokio::time::Instant;

/// Maximum memory for proofs and their callers, in bytes. The least used ones are evicted, and verified again when they
/// are used.
const MEMORY_BYTES_MAX: u64 = 16 << 20;
/// Approximate size of an entry without its proof, in bytes: the names and the overhead of the cache.
const ENTRY_BYTES: u64 = 512;
/// Expected number of entries; another number only costs some memory.
const ENTRIES: usize = 16_384;
/// Maximum size of a cached proof, in bytes. A larger one is verified each time.
const PROOF_BYTES_MAX: usize = 2_048;

/// The caller that a proof identifies.
#[derive(Debug)]
pub(super) struct Person {
    pub caller: Caller,
    /// The player's id, if the caller is a player.
    pub player: Option<PlayerId>,
    pub role: Role,
    /// When the proof expires, in milliseconds since the Unix epoch, including the leeway.
    pub until_ms: u64,
    /// When the proof expires by the monotonic clock, computed when the proof was first verified.
    pub deadline: Instant,
    /// The key that signed the proof; `None` for a certificate.
    pub key: Option<Arc<Key>>,
}

/// A cache of verified callers, by the bytes of their proof.
pub(super) struct VerifiedTokens(Cache<Box<[u8]>, Arc<Person>, ProofWeighter>);

#[derive(Debug, Clone)]
struct ProofWeighter;

impl Weighter<Box<[u8]>, Arc<Person>> for ProofWeighter {
    fn weight(&self, proof: &Box<[u8]>, _: &Arc<Person>) -> u64 {
        proof.len() as u64 + ENTRY_BYTES
    }
}

impl Default for VerifiedTokens {
    fn default() -> Self {
        Self(Cache::with_weighter(ENTRIES, MEMORY_BYTES_MAX, ProofWeighter))
    }
}

impl VerifiedTokens {
    pub fn get(&self, proof: &[u8]) -> Option<Arc<Person>> {
        self.0.get(proof)
    }

    pub fn insert(&self, proof: &[u8], person: Arc<Person>) {
        if proof.len() <= PROOF_BYTES_MAX {
            self.0.insert(proof.into(), person);
        }
    }

    /// Removes a proof that has expired, to make room.
    pub fn remove(&self, proof: &[u8]) {
        self.0.remove(proof);
    }
}

/// Omits the tokens, because they are secret.
impl fmt::Debug for VerifiedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedTokens").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person() -> Arc<Person> {
        Arc::new(Person {
            caller: Caller::new("lobby").expect("a name"),
            player: None,
            role: Role::Service,
            until_ms: 0,
            deadline: Instant::now(),
            key: None,
        })
    }

    /// A proof that is as long as a token with a few claims.
    fn proof(number: usize) -> Vec<u8> {
        let mut proof = vec![b'x'; 400];
        proof[..8].copy_from_slice(&number.to_le_bytes());
        proof
    }

    #[test]
    fn a_proof_that_is_too_long_is_not_kept_and_one_that_is_removed_is_forgotten() {
        let known = VerifiedTokens::default();
        known.insert(&[b'x'; PROOF_BYTES_MAX + 1], person());
        assert!(known.get(&[b'x'; PROOF_BYTES_MAX + 1]).is_none());
        known.insert(&proof(1), person());
        assert!(known.get(&proof(1)).is_some());
        known.remove(&proof(1));
        assert!(known.get(&proof(1)).is_none());
        assert!(!format!("{known:?}").contains("lobby"));
    }

    #[test]
    fn with_more_live_tokens_than_there_is_room_for_only_those_that_do_not_fit_are_verified_again() {
        let known = VerifiedTokens::default();
        let fit = (MEMORY_BYTES_MAX / (400 + ENTRY_BYTES)) as usize;
        let tokens = fit * 5 / 4;
        let mut verified_again = 0;
        for round in 0..4 {
            for number in 0..tokens {
                if known.get(&proof(number)).is_none() {
                    known.insert(&proof(number), person());
                    verified_again += usize::from(round > 1);
                }
            }
        }
        // A fifth does not fit. Using all tokens in turn is the worst order for the cache.
        let calls = 2 * tokens;
        assert!(verified_again < calls / 2, "{verified_again} of {calls} calls had their token verified again");
        let kept = (0..tokens).filter(|number| known.get(&proof(*number)).is_some()).count();
        assert!(kept <= fit && kept > fit / 2, "{kept} are kept, {fit} fit");
    }

    #[test]
    fn a_flood_of_tokens_that_are_used_once_does_not_displace_those_in_use() {
        let known = VerifiedTokens::default();
        let in_use = 1_000;
        for number in 0..in_use {
            known.insert(&proof(number), person());
            assert!(known.get(&proof(number)).is_some());
        }
        for number in 0..60_000 {
            known.insert(&proof(in_use + number), person());
            known.get(&proof(number % in_use));
        }
        let kept = (0..in_use).filter(|number| known.get(&proof(*number)).is_some()).count();
        assert!(kept > in_use * 9 / 10, "{kept} of {in_use} are still known");
    }
}
