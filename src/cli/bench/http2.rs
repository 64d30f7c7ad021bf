//! A minimal HTTP/2 client for gRPC calls without TLS. It costs a fraction of the server's work for a call, so that one
//! core can load a server on another core.

mod calls;
mod connection;
mod frames;
mod hpack;
mod huffman;

pub use calls::Event;
pub use connection::{Connection, RequestHeaders};
pub use hpack::CallStatus;

#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server is closing the connection (GOAWAY, error code {0})")]
    GoAway(u32),
    #[error("HTTP/2 error: {0}")]
    Protocol(&'static str),
    #[error("the server allows only {0} concurrent calls on a connection (increase its limits.streams_per_connection)")]
    TooManyCalls(u32),
}
