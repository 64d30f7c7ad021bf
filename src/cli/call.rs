//! `slotcast call`: calls any RPC by name, with requests and replies in JSON.
//!
//! The command derives all RPCs from the server's protobuf descriptors, so a new RPC needs no code here.

mod codec;
pub(super) mod failure;
mod request;
mod rpcs;

use super::output::print;
use super::{ClientArgs, CommandResult};
use codec::DynamicCodec;
use failure::Failure;
use futures_util::StreamExt;
use prost_reflect::{DynamicMessage, SerializeOptions};
use rpcs::Rpcs;
use std::io::{IsTerminal, Read};
use tonic::Request;
use tonic::client::Grpc;

const AFTER_HELP: &str = r#"Examples:
  slotcast call --list
  slotcast call AddItem --list
  slotcast call CreateInventory '{"create": {"inventoryId": "steve", "owner": "steve", "layout": "player"}}'
  slotcast call AddItem '{"add": {"inventoryId": "steve", "stack": {"item": "cobblestone", "count": 100}}}'
  slotcast call MoveItem '{"move": {"inventoryId": "steve", "from": {"slot": 0}, "to": {"slot": 8}}}' --key order-17
  slotcast call GetInventory '{"inventoryId": "steve"}' | jq .inventory.stacks
  slotcast call SubscribeInventory '{"inventories": [{"inventoryId": "steve"}]}'
  slotcast call slotcast.v1.InventoryService/Transact - < trade.json

JSON follows the proto3 mapping: field names in camelCase or as in the protos, 64-bit integers as strings, bytes in
base64."#;

/// Call an RPC by name with a request in JSON, and print the reply.
///
/// A streaming RPC prints one line of JSON per message until the stream ends or you press Ctrl-C. A mutation without an
/// idempotency key gets a new one; if the outcome remains unknown, the command prints the key so that you can retry the
/// same call. Errors are printed to standard error with all details, and the exit status is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Call {
    /// Name of the RPC: `AddItem`, or in full `slotcast.v1.InventoryService/AddItem`.
    #[arg(required_unless_present = "list")]
    rpc: Option<String>,
    /// Request in JSON. Default: standard input, or `{}` if standard input is a terminal; `-` always reads standard
    /// input.
    #[arg(value_name = "JSON")]
    request: Option<String>,
    /// Idempotency key of the mutation. Repeating the same call with the same key applies it once.
    #[arg(long)]
    key: Option<String>,
    /// List the RPCs with the fields of their requests. With an RPC, print a request template.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    client: ClientArgs,
}

impl Call {
    pub async fn run(self) -> CommandResult {
        let rpcs = Rpcs::built_in()?;
        let Some(name) = &self.rpc else {
            return Ok(print(rpcs.list())?);
        };
        let rpc = rpcs.find(name)?;
        if self.list {
            return Ok(print(request::template(&rpc.input()))?);
        }
        let json = self.request_json()?;
        let mut message = request::parse(&rpc.input(), &json)?;
        let key = request::set_key(&mut message, self.key.as_deref())?;

        let mut grpc = Grpc::new(self.client.client()?.channel());
        let failed = |status| Failure::new(status, &self.client.server).with_key(key.clone());
        grpc.ready().await.map_err(|error| failed(tonic::Status::from_error(error.into())))?;
        let (path, codec) = (rpcs::path(&rpc)?, DynamicCodec::new(rpc.output()));
        if !rpc.is_server_streaming() {
            let reply = grpc.unary(Request::new(message), path, codec).await.map_err(failed)?;
            return Ok(print(to_json(reply.get_ref(), true)?)?);
        }
        let mut stream = grpc.server_streaming(Request::new(message), path, codec).await.map_err(failed)?.into_inner();
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => print(to_json(&message.map_err(failed)?, false)?)?,
                    None => return Ok(()),
                },
                interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            }
        }
    }

    fn request_json(&self) -> Result<String, Box<dyn std::error::Error>> {
        let mut stdin = std::io::stdin();
        match self.request.as_deref() {
            Some("-") => {}
            Some(json) => return Ok(json.to_owned()),
            None if stdin.is_terminal() => return Ok("{}".to_owned()),
            None => {}
        }
        let mut json = String::new();
        stdin.read_to_string(&mut json).map_err(|error| format!("cannot read standard input: {error}"))?;
        // Empty input, as from /dev/null, means an empty request.
        Ok(if json.trim().is_empty() { "{}".to_owned() } else { json })
    }
}

/// Serializes a message including fields that are 0, false or empty, because slot 0 is a valid slot.
fn to_json(message: &DynamicMessage, pretty: bool) -> Result<String, Box<dyn std::error::Error>> {
    let options = SerializeOptions::new().skip_default_fields(false);
    let mut json = Vec::new();
    if pretty {
        message.serialize_with_options(&mut serde_json::Serializer::pretty(&mut json), &options)?;
    } else {
        message.serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options)?;
    }
    Ok(String::from_utf8(json)?)
}
