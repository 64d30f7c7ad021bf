//! An answer to whoever speaks HTTP in plaintext to a port that speaks TLS.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TEXT: &str = "this port speaks TLS: use https, or a gRPC client with TLS\n";
/// What is read of the request at most, so that the answer is not lost in a reset of the connection...
const READ_BYTES_MAX: u64 = 16 * 1024;
/// ...and for how long.
const READ_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn answer(socket: &mut TcpStream) -> io::Result<()> {
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n";
    let answer = format!("{head}content-length: {}\r\n\r\n{TEXT}", TEXT.len());
    socket.write_all(answer.as_bytes()).await?;
    socket.shutdown().await?;
    let mut rest = socket.take(READ_BYTES_MAX);
    // It need not end in time.
    let _ = tokio::time::timeout(READ_LIMIT, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(())
}
