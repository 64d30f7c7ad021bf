//! Replies to an HTTP request in plaintext on a port that requires TLS.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TEXT: &str = "this port requires TLS: use https\n";
/// Maximum number of bytes read from the request after the reply. Unread data would reset the connection, and the reply
/// could be lost.
const READ_BYTES_MAX: u64 = 16 * 1024;
/// Maximum time for reading the rest of the request.
const READ_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn reply(socket: &mut TcpStream) -> io::Result<()> {
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n";
    let reply = format!("{head}content-length: {}\r\n\r\n{TEXT}", TEXT.len());
    socket.write_all(reply.as_bytes()).await?;
    socket.shutdown().await?;
    let mut rest = socket.take(READ_BYTES_MAX);
    // The reply was sent, so the request may also be cut off.
    let _ = tokio::time::timeout(READ_LIMIT, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(())
}
