//! Reloads certificates without a restart. Changed files are used only if they are valid. Open connections keep the
//! certificate with which they started.

use super::tls::{LoadedTls, PemFiles, TlsError};
use super::{TlsSettings, TransportStatistics};
use crate::file_watch::FileWatch;
use arc_swap::ArcSwap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_rustls::rustls::ServerConfig;

/// Maximum size of each file, in bytes. The file with the roots for client certificates is the largest.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The certificates in use, and the watch of their files.
#[derive(Debug)]
pub(super) struct CertificateReloader {
    settings: TlsSettings,
    current: Arc<ArcSwap<ServerConfig>>,
    statistics: Arc<TransportStatistics>,
    watch: FileWatch,
}

impl CertificateReloader {
    pub fn open(settings: TlsSettings, statistics: Arc<TransportStatistics>) -> Result<Self, TlsError> {
        let paths = [Some(&settings.certificate), Some(&settings.key), settings.client_ca.as_ref()];
        let (watch, contents) = FileWatch::open(paths.into_iter().flatten().cloned().collect(), FILE_BYTES_MAX)?;
        let files = PemFiles::new(contents);
        let LoadedTls { config, not_after_unix_s } = LoadedTls::new(&files, &settings)?;
        if let Err(error) = check_expiry(&settings, not_after_unix_s) {
            tracing::warn!(%error, "clients will refuse the server certificate");
        }
        statistics.set_not_after(not_after_unix_s);
        let current = Arc::new(ArcSwap::new(config));
        Ok(Self { settings, current, statistics, watch })
    }

    /// Returns the TLS configuration for new connections, which changes with each reload.
    pub fn current(&self) -> Arc<ArcSwap<ServerConfig>> {
        self.current.clone()
    }

    /// Reloads the files whenever they change. Never returns.
    pub async fn watch_for_changes(mut self) -> Infallible {
        let mut interval = FileWatch::interval();
        loop {
            interval.tick().await;
            if let Some(read) = self.watch.check(false).await {
                self.reload(read.map(PemFiles::new).map_err(TlsError::from));
            }
        }
    }

    fn reload(&self, read: Result<PemFiles, TlsError>) {
        let settings = &self.settings;
        let loaded = read.and_then(|files| LoadedTls::new(&files, settings));
        let loaded = loaded.and_then(|loaded| check_expiry(settings, loaded.not_after_unix_s).map(|()| loaded));
        self.statistics.certificate_reloads().add(loaded.is_ok());
        match loaded {
            Ok(LoadedTls { config, not_after_unix_s }) => {
                self.current.store(config);
                self.statistics.set_not_after(not_after_unix_s);
                tracing::info!(not_after_unix_s, "certificate reloaded; new connections use it");
            }
            Err(error) => {
                tracing::error!(%error, "cannot reload the certificate; the previous certificate stays in use");
            }
        }
    }
}

fn check_expiry(settings: &TlsSettings, not_after_unix_s: i64) -> Result<(), TlsError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if not_after_unix_s > now.as_secs() as i64 {
        return Ok(());
    }
    Err(TlsError::Expired { certificate: settings.certificate.clone(), not_after_unix_s })
}
