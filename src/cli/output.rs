//! What commands print. A reader that has seen enough (`| head -1`) is no error: the command ends quietly.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// [`super::run`] ends with success.
    #[error("nobody reads standard output any more")]
    Closed,
    #[error("standard output cannot be written: {0}")]
    Failed(std::io::Error),
}

impl From<std::io::Error> for OutputError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe { Self::Closed } else { Self::Failed(error) }
    }
}

/// Prints a line. Unlike `println!` it does not panic when the reader is gone.
pub fn print(text: impl Display) -> Result<(), OutputError> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}
