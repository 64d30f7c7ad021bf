//! The JWKS file, followed by its content: what has changed is told once it was the same twice, so that a file that is just
//! being written is not taken by half.

use super::keys::{FILE_BYTES_MAX, KeysError};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

type Content = Result<String, ErrorKind>;

#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    /// What was taken or refused.
    judged: Content,
    /// What was there at the last look, if it is not that.
    changed: Option<Content>,
}

impl KeyFile {
    /// Reads it for the first time.
    pub fn open(path: PathBuf) -> Result<(Self, String), KeysError> {
        let text = read(&path)?;
        Ok((Self { path, judged: Ok(text.clone()), changed: None }, text))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says, if that is new and stands still. Each content is told once.
    pub async fn look(&mut self) -> Option<Result<String, KeysError>> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await.ok()?;
        let now = match &read {
            Ok(text) => Ok(text.clone()),
            Err(KeysError::Unreadable { error, .. }) => Err(error.kind()),
            Err(_) => Err(ErrorKind::FileTooLarge),
        };
        let stands_still = self.changed.take().is_some_and(|before| before == now);
        if now == self.judged || !stands_still {
            self.changed = Some(now).filter(|now| *now != self.judged);
            return None;
        }
        self.judged = now;
        Some(read)
    }
}

fn read(path: &Path) -> Result<String, KeysError> {
    let unreadable = |error| KeysError::Unreadable { path: path.into(), error };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX { Err(KeysError::TooLarge { path: path.into() }) } else { Ok(text) }
}
