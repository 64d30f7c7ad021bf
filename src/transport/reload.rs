//! Reloads certificates without a restart. Changed files are used only if they are valid. Open connections keep the
//! certificate with which they started.

use super::tls::{Files, TlsError, Usable};
use super::{TlsSettings, TransportStatistics};
use crate::file_watch::FileWatch;
use arc_swap::ArcSwap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::rustls::ServerConfig;

/// Maximum size of each file, in bytes. The file with the roots for client certificates is the largest.
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct Certificates {
    settings: TlsSettings,
    current: Arc<ArcSwap<ServerConfig>>,
    statistics: Arc<TransportStatistics>,
    watch: FileWatch,
}

impl Certificates {
    pub fn open(settings: TlsSettings, statistics: Arc<TransportStatistics>) -> Result<Self, TlsError> {
        let paths = [Some(&settings.certificate), Some(&settings.key), settings.client_ca.as_ref()];
        let (watch, contents) = FileWatch::open(paths.into_iter().flatten().cloned().collect(), FILE_BYTES_MAX)?;
        let files = Files::new(contents);
        let Usable { config, not_after } = Usable::new(&files, &settings)?;
        if let Err(error) = check_expiry(&settings, not_after) {
            tracing::warn!(%error, "clients will refuse it");
        }
        statistics.set_not_after(not_after);
        let current = Arc::new(ArcSwap::new(config));
        Ok(Self { settings, current, statistics, watch })
    }

    /// Returns the TLS configuration for new connections, which changes with each reload.
    pub fn current(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.current.clone()
    }

    pub async fn follow(mut self) -> Infallible {
        let mut interval = FileWatch::interval();
        loop {
            interval.tick().await;
            if let Some(read) = self.watch.check(false).await {
                self.take(read.map(Files::new).map_err(TlsError::from));
            }
        }
    }

    fn take(&self, read: Result<Files, TlsError>) {
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

fn check_expiry(settings: &TlsSettings, not_after: i64) -> Result<(), TlsError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if not_after > now.as_secs() as i64 {
        return Ok(());
    }
    Err(TlsError::Expired { certificate: settings.certificate.clone(), not_after })
}
