//! Limits the number of open streams of each player, or of each caller if the call does not name a player.

use crate::domain::{Caller, PlayerId};
use crate::identity::Identity;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSettings {
    /// Maximum number of open streams for each player.
    pub per_player_max: u32,
    /// Maximum number of open streams for each caller, of streams that do not name a player.
    pub per_caller_max: u32,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self { per_player_max: 16, per_caller_max: 10_000 }
    }
}

#[derive(Debug, Clone)]
pub struct StreamLimiter {
    settings: StreamSettings,
    counts: Counts,
}

type Counts = Arc<Mutex<HashMap<Opener, OpenStreams>>>;

/// The streams that a player or caller has open, at least one.
#[derive(Debug)]
struct OpenStreams {
    count: u32,
    permit: Arc<PermitState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Opener {
    Player(PlayerId),
    Caller(Caller),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooManyStreams {
    /// The player or caller, as `player:NAME` or `caller:NAME`.
    pub opener: String,
    pub streams_max: u32,
}

/// Permission to have a stream open. The stream counts until this value is dropped.
#[derive(Debug)]
pub struct StreamPermit(Arc<PermitState>);

/// What all permits of a player or caller share.
#[derive(Debug)]
struct PermitState {
    opener: Opener,
    counts: Counts,
}

impl StreamLimiter {
    pub fn new(settings: StreamSettings) -> Self {
        Self { settings, counts: Arc::default() }
    }

    /// Counts a stream as open.
    pub fn acquire(&self, identity: &Identity) -> Result<StreamPermit, TooManyStreams> {
        let (opener, streams_max) = match &identity.player {
            Some(player) => (Opener::Player(player.clone()), self.settings.per_player_max),
            None => (Opener::Caller(identity.caller.clone()), self.settings.per_caller_max),
        };
        let mut counts = lock(&self.counts);
        if counts.get(&opener).map_or(0, |open| open.count) >= streams_max {
            return Err(TooManyStreams { opener: opener.to_string(), streams_max });
        }
        let open = counts.entry(opener).or_insert_with_key(|opener| OpenStreams {
            count: 0,
            permit: Arc::new(PermitState { opener: opener.clone(), counts: self.counts.clone() }),
        });
        open.count += 1;
        Ok(StreamPermit(open.permit.clone()))
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let PermitState { opener, counts } = &*self.0;
        let mut counts = lock(counts);
        match counts.get_mut(opener) {
            Some(open) if open.count > 1 => open.count -= 1,
            Some(_) | None => {
                counts.remove(opener);
            }
        }
    }
}

impl std::fmt::Display for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Player(player) => write!(f, "player:{player}"),
            Self::Caller(caller) => write!(f, "caller:{caller}"),
        }
    }
}

/// Locks the counts. A poisoned lock is safe to use, because a panic never leaves a count partly changed.
fn lock(counts: &Mutex<HashMap<Opener, OpenStreams>>) -> MutexGuard<'_, HashMap<Opener, OpenStreams>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;

    fn identity(caller: &str, player: Option<&str>) -> Identity {
        let player = player.map(|player| PlayerId::new(player).expect("a name"));
        Identity { caller: Caller::new(caller).expect("a name"), player, role: Role::Service, credential_status: None }
    }

    #[test]
    fn streams_are_limited_by_player_and_without_a_player_by_caller() {
        let streams = StreamLimiter::new(StreamSettings { per_player_max: 2, per_caller_max: 1 });
        let first = streams.acquire(&identity("lobby", Some("steve"))).expect("the first");
        let _second = streams.acquire(&identity("arena", Some("steve"))).expect("the second");
        let third = streams.acquire(&identity("lobby", Some("steve")));
        assert_eq!(third.err(), Some(TooManyStreams { opener: "player:steve".into(), streams_max: 2 }));
        let _other = streams.acquire(&identity("lobby", Some("alex"))).expect("another player");
        let _own = streams.acquire(&identity("lobby", None)).expect("the caller's own");
        assert!(streams.acquire(&identity("lobby", None)).is_err());
        drop(first);
        assert!(streams.acquire(&identity("lobby", Some("steve"))).is_ok(), "one was closed");
    }

    #[test]
    fn a_player_without_open_streams_uses_no_memory() {
        let streams = StreamLimiter::new(StreamSettings::default());
        drop((streams.acquire(&identity("lobby", Some("steve"))), streams.acquire(&identity("lobby", Some("steve")))));
        assert!(lock(&streams.counts).is_empty());
    }
}
