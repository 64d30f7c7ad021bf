//! Newtypes for ids and numbers. Input is parsed into them once, at the edge; inside, there are no bare integers or
//! strings for them.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Why a text is not a valid name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    Empty,
    TooLong { bytes_max: usize },
    ControlCharacter,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "must not be empty"),
            Self::TooLong { bytes_max } => write!(f, "must be at most {bytes_max} bytes long"),
            Self::ControlCharacter => write!(f, "must not contain control characters"),
        }
    }
}

fn check_name(text: &str, bytes_max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > bytes_max {
        return Err(NameError::TooLong { bytes_max });
    }
    if text.chars().any(char::is_control) {
        return Err(NameError::ControlCharacter);
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $bytes_max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Maximum length, in bytes of UTF-8.
            pub const BYTES_MAX: usize = $bytes_max;

            /// Validates a name.
            ///
            /// # Errors
            ///
            /// A [`NameError`] if the text is empty, too long, or contains control characters.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check_name(text, Self::BYTES_MAX)?;
                Ok(Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The id of an inventory; 1 to 128 bytes.
    InventoryId,
    128
);
name!(
    /// The id of a player, such as the owner of an inventory; 1 to 128 bytes.
    PlayerId,
    128
);
name!(
    /// The caller that sent a mutation; idempotency keys are scoped to it. 1 to 128 bytes.
    Caller,
    128
);
name!(
    /// Identifies a mutation across retries; 1 to 255 bytes, preferably a UUIDv7.
    IdempotencyKey,
    255
);
name!(
    /// A client's id on its subscription and its mutations, which distinguishes an echo from news; 1 to 128 bytes.
    SessionId,
    128
);
name!(
    /// The id of a layout in the catalog; 1 to 64 bytes.
    LayoutId,
    64
);

/// The value of each hexadecimal digit by its byte; 255 for other bytes. Every mutation's key is parsed, twice.
const HEX_DIGITS: [u8; 256] = {
    let mut digits = [255; 256];
    let mut value = 0;
    while value < 16 {
        let digit = b"0123456789abcdef"[value];
        digits[digit as usize] = value as u8;
        digits[digit.to_ascii_uppercase() as usize] = value as u8;
        value += 1;
    }
    digits
};

impl IdempotencyKey {
    /// Returns the timestamp of a UUIDv7, in milliseconds since the Unix epoch; `None` for any other key.
    pub fn unix_ms(&self) -> Option<u64> {
        let text: &[u8; 36] = self.as_str().as_bytes().try_into().ok()?;
        if text[14] != b'7' || [8, 13, 18, 23].iter().any(|hyphen| text[*hyphen] != b'-') {
            return None;
        }
        // The bits of all digits: more than four if one of the bytes is not a digit.
        let mut bits = 0;
        let mut number = |digits: &[u8]| {
            digits.iter().fold(0_u64, |number, byte| {
                let digit = HEX_DIGITS[usize::from(*byte)];
                bits |= digit;
                number << 4 | u64::from(digit)
            })
        };
        let ms = number(&text[..8]) << 16 | number(&text[9..13]);
        [14..18, 19..23, 24..36].into_iter().for_each(|rest| _ = number(&text[rest]));
        (bits < 16).then_some(ms)
    }
}

/// A 32-bit tag that identifies an idempotency key in a frame: the MurmurHash3_x86_32 of its bytes with seed
/// 0x51070CA5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyTag(pub u32);

/// Stable number of an item in the catalog; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemCode(NonZeroU32);

impl ItemCode {
    /// Returns `None` if `code` is 0.
    pub fn new(code: u32) -> Option<Self> {
        NonZeroU32::new(code).map(Self)
    }

    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// Number of items in one stack or one request; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count(NonZeroU32);

impl Count {
    /// Returns `None` if `count` is 0.
    pub fn new(count: u32) -> Option<Self> {
        NonZeroU32::new(count).map(Self)
    }

    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// Number of a slot, from 0, counted across all sections of the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

impl Slot {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Number of a committed state of one inventory: increases by 1 with each change, without gaps. The creation is
/// revision 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a new inventory.
    pub const CREATED: Self = Self(1);

    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Identifies one life of an inventory: random, new at each creation and restore. Revisions are comparable only within
/// one epoch. Never 0.
///
/// An epoch has 32 bits, which suits languages without 64-bit integers and keeps full frames small. If two epochs of
/// one inventory ever collide, the digest still detects the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(NonZeroU32);

impl Epoch {
    /// Returns `None` if `epoch` is 0.
    pub fn new(epoch: u32) -> Option<Self> {
        NonZeroU32::new(epoch).map(Self)
    }

    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Returns an epoch that differs from this one.
    #[must_use]
    pub fn other(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(NonZeroU32::MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuidv7_has_a_timestamp() {
        let time = |text: &str| IdempotencyKey::new(text).expect("a name").unix_ms();
        assert_eq!(time("01890a5d-ac96-774b-bcce-b302099a8057"), Some(0x0189_0a5d_ac96));
        assert_eq!(time("01890a5d-ac96-474b-bcce-b302099a8057"), None, "version 4");
        assert_eq!(time("01890a5dxac96-774b-bcce-b302099a8057"), None, "no hyphen");
        assert_eq!(time("order-17"), None);
        assert_eq!(time("01890A5D-AC96-774B-BCCE-B302099A8057"), Some(0x0189_0a5d_ac96), "upper case");
        assert_eq!(time("01890a5d-ac96-774b-bcce-b302099a805g"), None, "not a digit");
    }

    #[test]
    fn empty_overlong_and_control_character_names_are_invalid() {
        assert_eq!(InventoryId::new(""), Err(NameError::Empty));
        assert_eq!(InventoryId::new("a\nb"), Err(NameError::ControlCharacter));
        assert!(IdempotencyKey::new(&"k".repeat(255)).is_ok());
        assert_eq!(IdempotencyKey::new(&"k".repeat(256)), Err(NameError::TooLong { bytes_max: 255 }));
    }
}
