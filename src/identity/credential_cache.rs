//! A bounded cache of verified credentials. A game server sends the same token with every call, and verifying a
//! signature costs far more than a lookup.

use super::credential::Credential;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::fmt;
use std::sync::Arc;

/// Maximum memory of the cache, in bytes. The least used entries are evicted, and verified again when they are used.
const MEMORY_BYTES_MAX: u64 = 16 << 20;
/// Approximate size of an entry without its key, in bytes: the names and the overhead of the cache.
const ENTRY_BYTES: u64 = 512;
/// Expected number of entries; a different number only costs some memory.
const ENTRIES: usize = 16_384;
/// Maximum size of a cached token or certificate, in bytes. A larger one is verified each time.
const CREDENTIAL_BYTES_MAX: usize = 2_048;

/// Verified credentials, by the bytes of the token or certificate.
pub(super) struct CredentialCache(Cache<Box<[u8]>, Arc<Credential>, SizeWeighter>);

#[derive(Debug, Clone)]
struct SizeWeighter;

impl Weighter<Box<[u8]>, Arc<Credential>> for SizeWeighter {
    fn weight(&self, key: &Box<[u8]>, _: &Arc<Credential>) -> u64 {
        key.len() as u64 + ENTRY_BYTES
    }
}

impl Default for CredentialCache {
    fn default() -> Self {
        Self(Cache::with_weighter(ENTRIES, MEMORY_BYTES_MAX, SizeWeighter))
    }
}

impl CredentialCache {
    pub fn get(&self, key: &[u8]) -> Option<Arc<Credential>> {
        self.0.get(key)
    }

    pub fn insert(&self, key: &[u8], credential: Arc<Credential>) {
        if key.len() <= CREDENTIAL_BYTES_MAX {
            self.0.insert(key.into(), credential);
        }
    }

    /// Removes an expired entry, to make room.
    pub fn remove(&self, key: &[u8]) {
        self.0.remove(key);
    }
}

/// Omits the tokens, because they are secret.
impl fmt::Debug for CredentialCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialCache").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;

    fn credential() -> Arc<Credential> {
        Arc::new(Credential::new("lobby", Role::Service, 0, 0, None).expect("a valid name"))
    }

    /// Returns a key with the size of a token with a few claims.
    fn token(number: usize) -> Vec<u8> {
        let mut token = vec![b'x'; 400];
        token[..8].copy_from_slice(&number.to_le_bytes());
        token
    }

    #[test]
    fn a_key_that_is_too_long_is_not_cached_and_a_removed_entry_is_gone() {
        let cache = CredentialCache::default();
        cache.insert(&[b'x'; CREDENTIAL_BYTES_MAX + 1], credential());
        assert!(cache.get(&[b'x'; CREDENTIAL_BYTES_MAX + 1]).is_none());
        cache.insert(&token(1), credential());
        assert!(cache.get(&token(1)).is_some());
        cache.remove(&token(1));
        assert!(cache.get(&token(1)).is_none());
        assert!(!format!("{cache:?}").contains("lobby"));
    }

    #[test]
    fn a_full_cache_still_serves_most_of_the_tokens_in_use() {
        let cache = CredentialCache::default();
        let capacity = (MEMORY_BYTES_MAX / (400 + ENTRY_BYTES)) as usize;
        let tokens = capacity * 5 / 4;
        let mut misses = 0;
        for round in 0..4 {
            for number in 0..tokens {
                if cache.get(&token(number)).is_none() {
                    cache.insert(&token(number), credential());
                    misses += usize::from(round > 1);
                }
            }
        }
        // A fifth does not fit. Using all tokens in turn is the worst order for the cache.
        let calls = 2 * tokens;
        assert!(misses < calls / 2, "{misses} of {calls} calls missed the cache");
        let cached = (0..tokens).filter(|number| cache.get(&token(*number)).is_some()).count();
        assert!(cached <= capacity && cached > capacity / 2, "{cached} cached, capacity {capacity}");
    }

    #[test]
    fn a_flood_of_tokens_that_are_used_once_does_not_evict_tokens_in_use() {
        let cache = CredentialCache::default();
        let in_use = 1_000;
        for number in 0..in_use {
            cache.insert(&token(number), credential());
            assert!(cache.get(&token(number)).is_some());
        }
        for number in 0..60_000 {
            cache.insert(&token(in_use + number), credential());
            cache.get(&token(number % in_use));
        }
        let cached = (0..in_use).filter(|number| cache.get(&token(*number)).is_some()).count();
        assert!(cached > in_use * 9 / 10, "{cached} of {in_use} are still cached");
    }
}
