//! Reloads the settings file while the server runs.

use super::{Config, ConfigError, Overrides};
use crate::file_watch::FileWatch;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use tokio::signal::unix::Signal;

const FILE_BYTES_MAX: u64 = 1 << 20;

/// A watched settings file and the settings that were last read from it without a problem.
#[derive(Debug)]
pub struct SettingsFile {
    path: PathBuf,
    overrides: Overrides,
    watch: FileWatch,
    current: Config,
}

/// Reloaded settings and the reason of the reload.
#[derive(Debug)]
pub struct Reloaded<'a> {
    pub config: &'a Config,
    pub path: &'a Path,
    pub reason: &'static str,
}

impl SettingsFile {
    /// Reads and validates the file.
    pub fn open(overrides: Overrides, path: PathBuf) -> Result<Self, ConfigError> {
        let (watch, contents) = FileWatch::open(vec![path.clone()], FILE_BYTES_MAX)?;
        let current = parse(&overrides, &path, &contents)?;
        Ok(Self { path, overrides, watch, current })
    }

    pub fn current(&self) -> &Config {
        &self.current
    }

    /// Returns the settings if the file has changed and its contents are stable, or in any case if `force`. An invalid
    /// file changes nothing and is reported once.
    pub async fn check(&mut self, force: bool) -> Option<Result<Reloaded<'_>, ConfigError>> {
        let contents = self.watch.check(force).await?.map_err(ConfigError::from);
        let config = match contents.and_then(|contents| parse(&self.overrides, &self.path, &contents)) {
            Ok(config) => config,
            Err(error) => return Some(Err(error)),
        };
        let restart_needed = config.values.restart_needed(&self.current.values);
        if !restart_needed.is_empty() {
            tracing::warn!(settings = restart_needed.join(", "), "changed settings apply only after a restart");
        }
        self.current = config;
        let reason = if force { "SIGHUP" } else { "the file has changed" };
        Some(Ok(Reloaded { config: &self.current, path: &self.path, reason }))
    }
}

fn parse(overrides: &Overrides, path: &Path, contents: &[Vec<u8>]) -> Result<Config, ConfigError> {
    // Text that is not UTF-8 is not valid TOML either; the TOML error reports its location.
    let text = contents.first().map(|content| String::from_utf8_lossy(content)).unwrap_or_default();
    Config::read(overrides, Some((path, &text)))
}

/// Calls `apply` with the settings after each change of the file and after each `hangup` (SIGHUP). Never returns.
pub async fn watch_for_changes(
    mut file: SettingsFile,
    mut hangup: Signal,
    apply: impl Fn(Result<Reloaded<'_>, &ConfigError>) + Send + 'static,
) -> Infallible {
    let mut interval = FileWatch::interval();
    loop {
        let force = tokio::select! {
            _ = hangup.recv() => true,
            _ = interval.tick() => false,
        };
        match file.check(force).await {
            Some(Ok(reloaded)) => apply(Ok(reloaded)),
            Some(Err(error)) => {
                tracing::error!(%error, "settings not reloaded; the previous settings stay in effect");
                apply(Err(&error));
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the reloaded `news_ms`.
    async fn check_twice(file: &mut SettingsFile) -> Option<Result<u64, String>> {
        assert!(file.check(false).await.is_none(), "the file may be partly written");
        let reloaded = file.check(false).await?;
        let news_ms = |reloaded: Reloaded<'_>| reloaded.config.rollout.windows.news.as_millis() as u64;
        Some(reloaded.map(news_ms).map_err(|error| error.to_string()))
    }

    #[tokio::test]
    async fn a_changed_file_is_reloaded_and_an_invalid_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slotcast.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("");
        let mut file = SettingsFile::open(Overrides::default(), path.clone()).unwrap();
        assert_eq!(check_twice(&mut file).await, None);
        write("[sync]\nnews_ms = 70\n");
        assert_eq!(check_twice(&mut file).await, Some(Ok(70)));
        for invalid in ["[sync]\nnews_ms = 80\necho = 1\n", "[sync]\nnews_ms = 70000\n", "["] {
            write(invalid);
            assert!(check_twice(&mut file).await.unwrap().is_err(), "{invalid}");
            assert_eq!(file.current().rollout.windows.news.as_millis(), 70, "{invalid}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(check_twice(&mut file).await.unwrap().unwrap_err().contains("cannot read"));
        write("[sync]\n");
        assert_eq!(check_twice(&mut file).await, Some(Ok(100)), "a setting that is not in the file has its default");
        assert!(file.check(true).await.is_some(), "a forced check always returns the settings");
    }

    #[tokio::test]
    async fn flags_override_a_reloaded_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slotcast.toml");
        std::fs::write(&path, "").unwrap();
        let overrides = Overrides::new(|_| None, [("sync.news_ms".to_owned(), "42".to_owned())].into());
        let mut file = SettingsFile::open(overrides, path.clone()).unwrap();
        std::fs::write(&path, "[sync]\nnews_ms = 70\n").unwrap();
        assert_eq!(check_twice(&mut file).await, Some(Ok(42)));
    }
}
