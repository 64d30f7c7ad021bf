//! Requests byte by byte, as no generated client would send them.

use crate::raw_codec::RawCodec;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::{Request, Status};

/// Sends these bytes as the message of a unary call; the reply is left unread.
pub async fn send(client: &slotcast::client::Client, rpc: &str, message: Vec<u8>) -> Result<(), Status> {
    let mut grpc = Grpc::new(client.channel());
    grpc.ready().await.unwrap();
    let path: PathAndQuery = format!("/slotcast.v1.InventoryService/{rpc}").parse().unwrap();
    grpc.unary(Request::new(message), path, RawCodec).await.map(drop)
}

/// A field that holds bytes: a text, a message, or neither.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(number < 16 && bytes.len() < 128, "one byte each");
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

/// A field that holds a negative number, as `int32 -1` is encoded.
pub fn minus_one(number: u8) -> Vec<u8> {
    [&[number << 3][..], &[0xFF; 9], &[0x01]].concat()
}
