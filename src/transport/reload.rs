//! Certificates, exchanged while the service runs. Their content is compared every second, as that of the settings file
//! is: what has changed is taken once it was the same twice, and only if it is good. Connections that are open keep what
//! they began with.

use super::tls::{Files, TlsError, Usable};
use super::{TlsSettings, TransportStatistics};
use arc_swap::ArcSwap;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::MissedTickBehavior;
use tokio_rustls::rustls::ServerConfig;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

type Content = Result<Files, ErrorKind>;

#[derive(Debug)]
pub(super) struct Certificates {
    settings: TlsSettings,
    current: Arc<ArcSwap<ServerConfig>>,
    statistics: Arc<TransportStatistics>,
    /// What was taken or refused.
    judged: Content,
    /// What was there at the last look, if it is not that.
    changed: Option<Content>,
}

impl Certificates {
    pub fn open(settings: TlsSettings, statistics: Arc<TransportStatistics>) -> Result<Self, TlsError> {
        let files = read(&settings)?;
        let Usable { config, not_after } = Usable::new(&files, &settings)?;
        if let Err(error) = check_expiry(&settings, not_after) {
            tracing::warn!(%error, "clients will refuse it");
        }
        statistics.set_not_after(not_after);
        let current = Arc::new(ArcSwap::new(config));
        Ok(Self { settings, current, statistics, judged: Ok(files), changed: None })
    }

    /// For connections that begin now.
    pub fn current(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.current.clone()
    }

    pub async fn follow(mut self) -> Infallible {
        let mut interval = tokio::time::interval(LOOK_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let settings = self.settings.clone();
            // A runtime that ends abandons it.
            if let Ok(now) = tokio::task::spawn_blocking(move || read(&settings)).await {
                self.look(now);
            }
        }
    }

    fn look(&mut self, read: Result<Files, TlsError>) {
        let now = read.as_ref().map(Clone::clone).map_err(kind);
        let stands_still = self.changed.take().is_some_and(|before| before == now);
        if now == self.judged || !stands_still {
            self.changed = Some(now).filter(|now| *now != self.judged);
            return;
        }
        self.judged = now;
        let settings = &self.settings;
        let usable = read.and_then(|files| Usable::new(&files, settings));
        let usable = usable.and_then(|usable| check_expiry(settings, usable.not_after).map(|()| usable));
        self.statistics.certificate_reloads().add(usable.is_ok());
        match usable {
            Ok(Usable { config, not_after }) => {
                self.current.store(config);
                self.statistics.set_not_after(not_after);
                tracing::info!(not_after_unix_s = not_after, "new connections get the new certificate");
            }
            Err(error) => tracing::error!(%error, "the new certificate was refused; the old one stays"),
        }
    }
}

fn read(settings: &TlsSettings) -> Result<Files, TlsError> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| TlsError::Unreadable { path: path.to_owned(), error });
    Ok(Files {
        certificate: read(&settings.certificate)?,
        key: read(&settings.key)?,
        client_ca: settings.client_ca.as_deref().map(read).transpose()?,
    })
}

/// What two looks are compared by.
fn kind(error: &TlsError) -> ErrorKind {
    if let TlsError::Unreadable { error, .. } = error { error.kind() } else { ErrorKind::Other }
}

fn check_expiry(settings: &TlsSettings, not_after: i64) -> Result<(), TlsError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if not_after > now.as_secs() as i64 {
        return Ok(());
    }
    Err(TlsError::Expired { certificate: settings.certificate.clone(), not_after })
}
