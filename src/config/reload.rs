//! Reloads the settings file while the service runs.

use super::{Config, ConfigError, Layers};
use crate::file_watch::FileWatch;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use tokio::signal::unix::Signal;

const FILE_BYTES_MAX: u64 = 1 << 20;

/// A watched settings file and its last valid contents.
#[derive(Debug)]
pub struct Reload {
    path: PathBuf,
    layers: Layers,
    file: FileWatch,
    current: Config,
}

/// Reloaded settings and the reason of the reload.
#[derive(Debug)]
pub struct Changed<'a> {
    pub config: &'a Config,
    pub path: &'a Path,
    pub reason: &'static str,
}

impl Reload {
    /// Reads and validates the file.
    pub fn open(layers: Layers, path: PathBuf) -> Result<Self, ConfigError> {
        let (file, contents) = FileWatch::open(vec![path.clone()], FILE_BYTES_MAX)?;
        let current = parse(&layers, &path, &contents)?;
        Ok(Self { path, layers, file, current })
    }

    pub fn current(&self) -> &Config {
        &self.current
    }

    /// Returns the settings if the file has changed and its contents are stable, or in any case if `asked`. An invalid
    /// file changes nothing and is reported once.
    pub async fn look(&mut self, asked: bool) -> Option<Result<Changed<'_>, ConfigError>> {
        let contents = self.file.look(asked).await?;
        let read = contents.map_err(ConfigError::from).and_then(|contents| parse(&self.layers, &self.path, &contents));
        let config = match read {
            Ok(config) => config,
            Err(error) => return Some(Err(error)),
        };
        let restart_needed = config.values.restart_needed(&self.current.values);
        if !restart_needed.is_empty() {
            tracing::warn!(settings = restart_needed.join(", "), "these have changed, but hold only after a restart");
        }
        self.current = config;
        let reason = if asked { "SIGHUP" } else { "the file has changed" };
        Some(Ok(Changed { config: &self.current, path: &self.path, reason }))
    }
}

fn parse(layers: &Layers, path: &Path, contents: &[Vec<u8>]) -> Result<Config, ConfigError> {
    // Text that is not UTF-8 is not valid TOML either; the TOML error reports its location.
    let text = contents.first().map(|content| String::from_utf8_lossy(content)).unwrap_or_default();
    Config::read(layers, Some((path, &text)))
}

/// Calls `apply` with the settings after each change of the file and after each `hangup` (SIGHUP). Never returns.
pub async fn follow(
    mut reload: Reload,
    mut hangup: Signal,
    apply: impl Fn(Result<Changed<'_>, &ConfigError>) + Send + 'static,
) -> Infallible {
    let mut interval = FileWatch::interval();
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            _ = interval.tick() => false,
        };
        match reload.look(asked).await {
            Some(Ok(changed)) => apply(Ok(changed)),
            Some(Err(error)) => {
                tracing::error!(%error, "the settings were refused; nothing has changed");
                apply(Err(&error));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn look_twice(reload: &mut Reload) -> Option<Result<u64, String>> {
        assert!(reload.look(false).await.is_none(), "it may just be written");
        let told = reload.look(false).await?;
        Some(
            told.map(|changed| changed.config.rollout.windows.news.as_millis() as u64)
                .map_err(|error| error.to_string()),
        )
    }

    #[tokio::test]
    async fn a_change_of_the_file_is_told_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slotcast.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("");
        let mut reload = Reload::open(Layers::default(), path.clone()).unwrap();
        assert_eq!(look_twice(&mut reload).await, None);
        write("[sync]\nnews_ms = 70\n");
        assert_eq!(look_twice(&mut reload).await, Some(Ok(70)));
        for bad in ["[sync]\nnews_ms = 80\necho = 1\n", "[sync]\nnews_ms = 70000\n", "["] {
            write(bad);
            assert!(look_twice(&mut reload).await.unwrap().is_err(), "{bad}");
            assert_eq!(reload.current().rollout.windows.news.as_millis(), 70, "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(look_twice(&mut reload).await.unwrap().unwrap_err().contains("cannot read"));
        write("[sync]\n");
        assert_eq!(look_twice(&mut reload).await, Some(Ok(100)), "what is not named is as without a file");
        assert!(reload.look(true).await.is_some(), "who asks is told");
    }

    #[tokio::test]
    async fn flags_hold_against_a_file_that_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slotcast.toml");
        std::fs::write(&path, "").unwrap();
        let layers = Layers::new(|_| None, [("sync.news_ms".to_owned(), "42".to_owned())].into());
        let mut reload = Reload::open(layers, path.clone()).unwrap();
        std::fs::write(&path, "[sync]\nnews_ms = 70\n").unwrap();
        assert_eq!(look_twice(&mut reload).await, Some(Ok(42)));
    }
}
