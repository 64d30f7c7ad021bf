//! Output of commands. A reader that closes the pipe early (`| head -1`) is not an error: the command exits
//! successfully.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// [`super::run`] exits successfully.
    #[error("standard output is closed")]
    Closed,
    #[error("cannot write to standard output: {0}")]
    Failed(std::io::Error),
}

impl From<std::io::Error> for OutputError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe { Self::Closed } else { Self::Failed(error) }
    }
}

/// Prints a line. Unlike `println!`, it returns an error when the reader has closed the pipe, instead of panicking.
pub fn print(text: impl Display) -> Result<(), OutputError> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}
