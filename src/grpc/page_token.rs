//! Page tokens of lists. A token contains the start of the next page and is bound to the owner and the prefix of the
//! query.
//!
//! A token is not secret, and forging one gains nothing, because its query is authorized like any other. The check in a
//! token catches mistakes: a token of another query, or an invented one, would silently skip inventories. The check
//! does not need a key, so a token is valid after a restart and in any other process.

use crate::domain::{Fingerprint, InventoryId, PlayerId};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;

/// Version of the token format. Change it whenever the meaning of a token changes.
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 8;

/// Returns the token of the page after `last`.
pub fn write(owner: Option<&PlayerId>, prefix: &str, last: &InventoryId) -> String {
    let check = check(owner, prefix, last).to_be_bytes();
    BASE64.encode([&[VERSION], check.as_slice(), last.as_str().as_bytes()].concat())
}

/// Returns the last inventory of the previous page, or `None` if the token does not belong to this query.
pub fn read(owner: Option<&PlayerId>, prefix: &str, token: &str) -> Option<InventoryId> {
    let bytes = BASE64.decode(token).ok()?;
    let (version, bytes) = bytes.split_first()?;
    let (expected, last) = bytes.split_first_chunk::<CHECK_BYTES>()?;
    let last = InventoryId::new(std::str::from_utf8(last).ok()?).ok()?;
    let is_valid = *version == VERSION
        && last.as_str().starts_with(prefix)
        && u64::from_be_bytes(*expected) == check(owner, prefix, &last);
    is_valid.then_some(last)
}

/// Returns the check of a token. The hashed text includes the lengths of its parts, so that no two queries have the
/// same text.
fn check(owner: Option<&PlayerId>, prefix: &str, last: &InventoryId) -> u64 {
    let owner = owner.map_or("", PlayerId::as_str);
    let lengths = format!("slotcast page token {VERSION}\n{}\n{}\n", owner.len(), prefix.len());
    Fingerprint::of([lengths.as_str(), owner, prefix, last.as_str()].concat().as_bytes()).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> InventoryId {
        InventoryId::new(text).expect("a name")
    }

    #[test]
    fn a_token_is_valid_only_for_its_own_query() {
        let (ann, bob) = (PlayerId::new("ann").expect("a name"), PlayerId::new("bob").expect("a name"));
        let token = write(Some(&ann), "bag/", &id("bag/7"));
        assert_eq!(read(Some(&ann), "bag/", &token), Some(id("bag/7")));
        for (owner, prefix) in [(Some(&bob), "bag/"), (None, "bag/"), (Some(&ann), "bag"), (Some(&ann), "")] {
            assert_eq!(read(owner, prefix, &token), None, "{owner:?} {prefix:?}");
        }
    }

    #[test]
    fn owner_and_prefix_are_hashed_separately() {
        let token = |owner: &str, prefix: &str| {
            let owner = PlayerId::new(owner).ok();
            write(owner.as_ref(), prefix, &id("abc"))
        };
        let tokens =
            [token("", ""), token("ab", "ab"), token("a", "ab"), token("ab", "a"), token("", "abc"), token("abc", "")];
        let distinct: std::collections::HashSet<_> = tokens.iter().collect();
        assert_eq!(distinct.len(), tokens.len());
    }

    #[test]
    fn a_token_with_any_changed_bit_is_invalid() {
        let token = BASE64.decode(write(None, "", &id("chest-1"))).expect("it was encoded");
        for bit in 0..token.len() * 8 {
            let mut changed = token.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(None, "", &BASE64.encode(changed)), None, "bit {bit}");
        }
        assert_eq!(read(None, "", &BASE64.encode(token)), Some(id("chest-1")));
    }
}
