//! A settings file, followed while the service runs.
//!
//! Its content is compared every second instead of asking the system for events: a mounted ConfigMap, an editor that
//! renames and a network share all come out the same, and a file of a few hundred bytes costs nothing to read. What has
//! changed holds once it was the same twice, so that a file that is just being written is not taken by half.

use super::{ConfigError, LiveRollout, parse};
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

type Content = Result<String, std::io::ErrorKind>;

/// What was last read of the file.
#[derive(Debug)]
pub struct Reload {
    path: PathBuf,
    live: LiveRollout,
    /// What was set or refused.
    judged: Content,
    /// What was there at the last look, if it is not that.
    changed: Option<Content>,
}

impl Reload {
    /// Reads and checks the file, and makes the rollout that it will be set on from now on.
    pub fn open(path: PathBuf) -> Result<Self, ConfigError> {
        let unreadable = |error| ConfigError::Unreadable { path: path.clone(), error };
        let text = std::fs::read_to_string(&path).map_err(unreadable)?;
        let live = LiveRollout::new(parse(&text, &path)?);
        Ok(Self { path, live, judged: Ok(text), changed: None })
    }

    pub fn rollout(&self) -> &LiveRollout {
        &self.live
    }

    /// Sets what the file says if it has changed and stands still, or in any case if `asked`. A file that is wrong changes nothing, and is
    /// told of once.
    pub async fn look(&mut self, asked: bool) {
        let text = tokio::fs::read_to_string(&self.path).await;
        let now = text.as_ref().map(Clone::clone).map_err(std::io::Error::kind);
        let stands_still = self.changed.take().is_some_and(|before| before == now);
        if !asked && (now == self.judged || !stands_still) {
            self.changed = Some(now).filter(|now| *now != self.judged);
            return;
        }
        self.judged = now;
        let unreadable = |error| ConfigError::Unreadable { path: self.path.clone(), error };
        match text.map_err(unreadable).and_then(|text| parse(&text, &self.path)) {
            Ok(rollout) => {
                let who = format!("the file {}", self.path.display());
                let reason = if asked { "SIGHUP" } else { "the file has changed" };
                // It was checked when it was read.
                let _ = self.live.change(&who, reason, |_| Ok(rollout));
            }
            Err(error) => tracing::error!(%error, "the settings were refused; nothing has changed"),
        }
    }
}

/// Sets what the file says whenever it changes, and on SIGHUP, which from this call on does not end the process. Never
/// ends.
pub fn follow(mut reload: Reload) -> std::io::Result<impl Future<Output = Infallible> + Send + 'static> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Ok(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => reload.look(true).await,
                _ = interval.tick() => reload.look(false).await,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Field, Rollout};

    async fn look_twice(reload: &mut Reload) {
        reload.look(false).await;
        reload.look(false).await;
    }

    #[tokio::test]
    async fn a_change_of_the_file_is_set_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slotcast.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("");
        let mut reload = Reload::open(path.clone()).unwrap();
        let live = reload.rollout().clone();
        let news_ms = || Field::NewsMs.read(&live.current());

        write("");
        reload.look(false).await;
        write("[sync]\n");
        reload.look(false).await;
        write("[sync]\nnews_ms = 70\n");
        reload.look(false).await;
        assert_eq!(news_ms(), 100, "it is just being written");
        reload.look(false).await;
        assert_eq!(news_ms(), 70);
        for bad in ["[sync]\nnews_ms = 80\necho = 1\n", "[sync]\nnews_ms = 70000\n", "["] {
            write(bad);
            look_twice(&mut reload).await;
            assert_eq!(news_ms(), 70, "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
        look_twice(&mut reload).await;
        assert_eq!(news_ms(), 70, "there is no file");
        write("[sync]\n");
        look_twice(&mut reload).await;
        assert_eq!(news_ms(), 100, "what is not named is as without a file");
    }

    #[tokio::test]
    async fn what_was_set_otherwise_holds_until_the_file_is_asked_for_or_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slotcast.toml");
        std::fs::write(&path, "[sync]\nnews_ms = 70\n").unwrap();
        let mut reload = Reload::open(path).unwrap();
        let live = reload.rollout().clone();
        assert_eq!(Field::NewsMs.read(&live.current()), 70);
        live.change("me", "a test", |_| Ok(Rollout::immediate_full())).unwrap();
        reload.look(false).await;
        assert_eq!(*live.current(), Rollout::immediate_full());
        reload.look(true).await;
        assert_eq!((live.current().delta.get(), Field::NewsMs.read(&live.current())), (100, 70));
    }
}
