//! Signals to the streams of a connection when they must end.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The state of a connection's life cycle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Phase {
    Open,
    /// The connection takes no new calls; each of its streams ends at its own time.
    Old {
        since: Instant,
        within: Duration,
    },
    /// All streams of the connection end now.
    Ending,
}

/// Signals to a stream when it must end, because the service drains or the connection has reached its maximum age. The
/// transport adds it to the extensions of each request. The stream then ends with UNAVAILABLE, and its client opens it
/// again on another connection.
#[derive(Debug, Clone)]
pub struct Closing {
    /// `None` if the stream never has to end.
    phase: Option<watch::Receiver<Phase>>,
    /// When the stream ends, as a fraction of an old connection's grace, 0 to 1. The fraction is random, so that the
    /// streams of one connection do not all reconnect at once.
    moment: f32,
}

impl Closing {
    /// Returns a signal that never fires, for requests that this transport does not serve.
    pub fn never() -> Self {
        Self { phase: None, moment: 0.0 }
    }

    pub(super) fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase: Some(phase), moment: fastrand::f32() }
    }

    /// Waits until the stream must end. Returns immediately if that time has passed. Cancel safe.
    pub async fn wait(&self) {
        let Some(mut phase) = self.phase.clone() else { return std::future::pending().await };
        let mut next = *phase.borrow_and_update();
        loop {
            match next {
                Phase::Ending => return,
                Phase::Open => {
                    // A dropped sender means that the connection is closed and the stream has no reader.
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
            // A second call returns immediately.
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
