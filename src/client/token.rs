//! A bearer token in a file. The token expires and another process replaces the file in time, so the client reads the
//! file again.

use super::ClientError;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::metadata::{Ascii, MetadataValue};

pub(super) const TOKEN_METADATA: &str = "authorization";
/// Maximum age of the token in memory. It avoids a file read for each of thousands of calls per second.
const READ_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Token {
    path: PathBuf,
    last: Mutex<(Instant, MetadataValue<Ascii>)>,
}

impl Token {
    pub fn open(path: PathBuf) -> Result<Self, ClientError> {
        let problem = |problem| ClientError::Token { path: path.clone(), problem };
        let last = Mutex::new((Instant::now(), read(&path).map_err(problem)?));
        Ok(Self { path, last })
    }

    /// Returns the token as metadata. If the file cannot be read, the previous token remains in use.
    pub fn value(&self) -> MetadataValue<Ascii> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.elapsed() >= READ_INTERVAL {
            last.0 = Instant::now();
            match read(&self.path) {
                Ok(value) => last.1 = value,
                Err(problem) => {
                    tracing::warn!(path = %self.path.display(), problem, "cannot read the token file; keeping the previous token")
                }
            }
        }
        last.1.clone()
    }
}

fn read(path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let token = text.trim();
    if token.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let malformed = || "the token must consist of visible ASCII characters".to_owned();
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(malformed());
    }
    let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| malformed())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_reloaded_and_kept_while_its_file_is_missing_or_invalid() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        let write = |text: &str| std::fs::write(&path, text).expect("it is written");
        assert!(matches!(Token::open(path.clone()), Err(ClientError::Token { .. })));
        write("first\n");
        let token = Token::open(path.clone()).expect("a token");
        let value_later = || {
            let mut last = token.last.lock().expect("no panic");
            last.0 = last.0.checked_sub(READ_INTERVAL).expect("a machine that runs for a second");
            drop(last);
            token.value().to_str().expect("text").to_owned()
        };
        assert_eq!(value_later(), "Bearer first");
        write("second");
        assert_eq!(token.value(), "Bearer first", "it was read just now");
        assert_eq!(value_later(), "Bearer second");
        for bad in ["", " \n", "two\nlines", "ü"] {
            write(bad);
            assert_eq!(value_later(), "Bearer second", "{bad:?}");
        }
        std::fs::remove_file(&path).expect("it is there");
        assert_eq!(value_later(), "Bearer second");
    }
}
