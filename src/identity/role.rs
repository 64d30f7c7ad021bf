//! The roles of callers. Each role includes the rights of the roles before it.

use serde::Deserialize;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads its own inventories.
    Player,
    /// A game server: reads and changes all inventories, and acts for players.
    Service,
    /// An operator of the server.
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Player, Self::Service, Self::Admin];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.to_string() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Player => "player",
            Self::Service => "service",
            Self::Admin => "admin",
        })
    }
}
