//! Signals to the streams of a connection when they must end.

use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time over which the streams of a connection end once it has reached its maximum age.
#[derive(Debug, Clone)]
pub(super) struct GracePeriod {
    pub start: Instant,
    pub duration: Duration,
    /// Cancelled when GOAWAY was sent. No stream ends before, because its client would open it again on this
    /// connection.
    pub goaway_sent: CancellationToken,
}

#[derive(Debug, Clone)]
struct AgeLimit {
    goaway_sent: CancellationToken,
    deadline: Instant,
}

/// Signals to a stream when it must end, because the server drains or its connection has reached its maximum age. The
/// stream then ends with UNAVAILABLE, and its client opens it again on another connection.
#[derive(Debug, Clone)]
pub struct DrainSignal {
    /// Cancelled when all streams of the connection must end.
    drain: CancellationToken,
    /// Why and when this stream ends because of the age of its connection; `None` if connections have no maximum age.
    age: Option<AgeLimit>,
}

impl DrainSignal {
    /// Returns a signal that never fires, for requests that this transport does not serve.
    pub fn never() -> Self {
        Self { drain: CancellationToken::new(), age: None }
    }

    /// Creates the signal of one stream. The stream ends at a random time in the grace period, so that the streams of
    /// one connection do not all reconnect at once.
    pub(super) fn new(drain: CancellationToken, grace: Option<GracePeriod>) -> Self {
        let age = grace.map(|GracePeriod { start, duration, goaway_sent }| AgeLimit {
            goaway_sent,
            deadline: start + duration.mul_f32(fastrand::f32()),
        });
        Self { drain, age }
    }

    /// Waits until the stream must end. Returns immediately if that time has passed. Cancel safe.
    pub async fn wait(&self) {
        let Some(AgeLimit { goaway_sent, deadline }) = &self.age else { return self.drain.cancelled().await };
        tokio::select! {
            () = self.drain.cancelled() => {}
            () = async {
                goaway_sent.cancelled().await;
                tokio::time::sleep_until(*deadline).await;
            } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn streams_end_spread_over_the_grace_period_and_at_once_when_the_server_drains() {
        let drain = CancellationToken::new();
        let start = Instant::now();
        let grace = GracePeriod {
            start: start + Duration::from_secs(100),
            duration: Duration::from_secs(20),
            goaway_sent: CancellationToken::new(),
        };
        let signals: Vec<_> = (0..200).map(|_| DrainSignal::new(drain.clone(), Some(grace.clone()))).collect();
        let waits = signals.iter().map(|signal| async move {
            signal.wait().await;
            // A second call returns immediately.
            signal.wait().await;
            start.elapsed()
        });
        let drained = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            grace.goaway_sent.cancel();
            tokio::time::sleep(Duration::from_secs(10)).await;
            drain.cancel();
        };
        let (ends, ()) = tokio::join!(futures_util::future::join_all(waits), drained);
        let seconds: Vec<u64> = ends.iter().map(Duration::as_secs).collect();
        assert!(seconds.iter().all(|end| (100..=110).contains(end)), "{seconds:?}");
        for second in 100..110 {
            assert!(seconds.contains(&second), "no stream ended in second {second}: {seconds:?}");
        }
        assert!(seconds.iter().filter(|end| **end == 110).count() > 50, "the others end at once: {seconds:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_stream_ends_before_goaway_was_sent() {
        let start = Instant::now();
        let goaway_sent = CancellationToken::new();
        let grace = GracePeriod { start, duration: Duration::ZERO, goaway_sent: goaway_sent.clone() };
        let signal = DrainSignal::new(CancellationToken::new(), Some(grace));
        assert!(tokio::time::timeout(Duration::from_secs(10), signal.wait()).await.is_err());
        goaway_sent.cancel();
        signal.wait().await;
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_a_maximum_age_never_has_to_end() {
        let never = DrainSignal::never();
        assert!(tokio::time::timeout(Duration::from_secs(1_000_000), never.wait()).await.is_err());
    }
}
