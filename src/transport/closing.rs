//! When the streams of a connection have to end.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Phase {
    Open,
    /// It takes no new calls; each of its streams ends at a moment of its own.
    Old {
        since: Instant,
        within: Duration,
    },
    /// All of its streams end now.
    Ending,
}

/// In a request's extensions: tells its stream when to end, because the service drains or the connection has become old. A
/// stream then ends with UNAVAILABLE, and its client opens it anew on another connection.
#[derive(Debug, Clone)]
pub struct Closing {
    /// None: never.
    phase: Option<watch::Receiver<Phase>>,
    /// Where its moment is within an old connection's grace, 0 to 1: so the streams of one connection do not all come back
    /// at once.
    moment: f32,
}

impl Closing {
    /// For what is not served by this transport.
    pub fn never() -> Self {
        Self { phase: None, moment: 0.0 }
    }

    pub(super) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase: Some(phase), moment: fastrand::f32() }
    }

    /// Resolves when the stream has to end, however often it is asked. Safe to drop and call again.
    pub async fn wait(&self) {
        let Some(mut phase) = self.phase.clone() else { return std::future::pending().await };
        let mut next = *phase.borrow_and_update();
        loop {
            match next {
                Phase::Ending => return,
                Phase::Open => {
                    // A connection that is gone has nobody left to stream to.
                    if phase.changed().await.is_err() {
                        return;
                    }
                }
                Phase::Old { since, within } => {
                    let end = since + within.mul_f32(self.moment);
                    if !matches!(tokio::time::timeout_at(end, phase.changed()).await, Ok(Ok(()))) {
                        return;
                    }
                }
            }
            next = *phase.borrow_and_update();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn streams_of_an_old_connection_end_spread_over_its_grace_and_all_at_once_when_it_ends() {
        let (sender, receiver) = watch::channel(Phase::Open);
        let since = Instant::now();
        let all: Vec<Closing> = (0..200).map(|_| Closing::new(receiver.clone())).collect();
        let waits = all.iter().map(|closing| async move {
            closing.wait().await;
            // Asked again it does not wait.
            closing.wait().await;
            since.elapsed()
        });
        let old = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            sender.send_replace(Phase::Old { since: Instant::now(), within: Duration::from_secs(20) });
            tokio::time::sleep(Duration::from_secs(10)).await;
            sender.send_replace(Phase::Ending);
        };
        let (ends, ()) = tokio::join!(futures_util::future::join_all(waits), old);
        let seconds: Vec<u64> = ends.iter().map(Duration::as_secs).collect();
        assert!(seconds.iter().all(|end| (100..=110).contains(end)), "{seconds:?}");
        for spread in 100..110 {
            assert!(seconds.contains(&spread), "none ended in second {spread}: {seconds:?}");
        }
        assert!(seconds.iter().filter(|end| **end == 110).count() > 50, "the rest ends at once: {seconds:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_served_here_never_has_to_end() {
        assert!(tokio::time::timeout(Duration::from_secs(1_000_000), Closing::never().wait()).await.is_err());
    }
}
