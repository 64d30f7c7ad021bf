//! Preparation of a server without opening listeners or the store: `config` stops here, `serve` continues.

use super::data::STORE_FILE;
use crate::catalog_file;
use crate::config::{Config, ConfigError};
use crate::domain::Catalog;
use crate::identity::{Authentication, Verifier};
use crate::statistics::TransportStatistics;
use crate::telemetry::Exporters;
use crate::transport::Transport;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Validated contents of the files that the settings name.
#[derive(Debug)]
pub struct Prepared {
    pub catalog: Catalog,
    pub authentication: Authentication,
    pub transport: Transport,
}

/// Reads and validates all files that the settings name. The error lists every problem. Changes nothing. Needs a tokio
/// runtime.
pub fn prepare(config: &Config, statistics: Arc<TransportStatistics>) -> Result<Prepared, ConfigError> {
    let mut problems = Vec::new();
    let catalog = collect("catalog", catalog_file::read_or_default(config.catalog.as_deref()), &mut problems);
    let authentication = collect("identity", authentication(config), &mut problems);
    let transport = collect("tls", Transport::open(config.transport.clone(), statistics), &mut problems);
    collect("otlp", Exporters::check(&config.telemetry), &mut problems);
    collect("data", check_data(&config.data), &mut problems);
    match (catalog, authentication, transport) {
        (Some(catalog), Some(authentication), Some(transport)) if problems.is_empty() => {
            Ok(Prepared { catalog, authentication, transport })
        }
        _ => Err(ConfigError::Invalid { problems }),
    }
}

/// Returns the value, or adds the error to `problems`.
fn collect<T>(setting: &str, result: Result<T, impl Display>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.push(format!("{setting}: {error}"))).ok()
}

fn authentication(config: &Config) -> Result<Authentication, crate::identity::IdentityError> {
    if !config.has_authentication() {
        return Ok(Authentication::Disabled);
    }
    Verifier::open(config.identity.clone()).map(|verifier| Authentication::Enabled(Arc::new(verifier)))
}

/// Checks that the store can be written or its directory created, as far as possible without doing so.
fn check_data(data: &Path) -> Result<(), String> {
    let store = data.join(STORE_FILE);
    match OpenOptions::new().read(true).write(true).open(&store) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("cannot open {} for writing: {error}", store.display())),
    }
    // A relative path that does not exist yet is created in the current directory.
    let existing =
        data.ancestors().find(|directory| directory.exists()).filter(|directory| !directory.as_os_str().is_empty());
    let directory = existing.unwrap_or(Path::new("."));
    // The temporary file has no name, so no other process sees it.
    tempfile::tempfile_in(directory)
        .map(drop)
        .map_err(|error| format!("cannot write to the directory {}: {error}", directory.display()))
}
