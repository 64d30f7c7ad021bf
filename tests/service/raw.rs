//! Requests encoded byte by byte, which no generated client can send.

use crate::raw_codec::RawCodec;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::{Request, Status};

/// Sends bytes as the message of a unary call, and ignores the reply's content.
pub async fn send(client: &slotcast::client::Client, rpc: &str, message: Vec<u8>) -> Result<(), Status> {
    let mut grpc = Grpc::new(client.channel());
    grpc.ready().await.unwrap();
    let path: PathAndQuery = format!("/slotcast.v1.InventoryService/{rpc}").parse().unwrap();
    grpc.unary(Request::new(message), path, RawCodec).await.map(drop)
}

/// Encodes a length-delimited field: a string, a message, or bytes.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(number < 16 && bytes.len() < 128, "one byte each");
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

/// Encodes a field with the number -1 of type `int32`.
pub fn minus_one(number: u8) -> Vec<u8> {
    [&[number << 3][..], &[0xFF; 9], &[0x01]].concat()
}
