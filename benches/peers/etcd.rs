//! etcd: a key for each inventory. An update is a put; a transfer reads two keys and writes both in a transaction.

use crate::load::{Client, INVENTORIES, Subscriber};
use crate::server::Server;
use crate::value;
use etcd_messages::{
    Compare, KeyValue, PutRequest, PutResponse, RangeRequest, RequestOp, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchRequest, WatchResponse, request_op, response_op,
};
use http::uri::PathAndQuery;
use prost::Message;
use std::io;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

#[path = "etcd_messages.rs"]
mod etcd_messages;

const PREFIX: &str = "inventory/";
/// The first key after all keys with the prefix.
const PREFIX_END: &str = "inventory0";
/// `Compare.target` for the revision of the last modification.
const TARGET_MOD: i32 = 2;

/// Starts one member with the default settings.
pub async fn start() -> io::Result<Server> {
    let peer_port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let server = Server::start("etcd", |port, folder| {
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let data = folder.join("data").to_string_lossy().into_owned();
        let options = [
            ("--data-dir", data),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer.clone()),
            ("--initial-cluster", format!("default={peer}")),
        ];
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    })
    .await?;
    let clients: Vec<EtcdClient> =
        futures_util::future::try_join_all((0..16).map(|_| EtcdClient::connect(&server))).await?;
    let share = INVENTORIES / clients.len();
    let fills = clients.into_iter().enumerate().map(async |(number, mut client)| {
        for inventory in number * share..(number + 1) * share {
            client.put(inventory, value::full()).await?;
        }
        Ok::<_, io::Error>(())
    });
    futures_util::future::try_join_all(fills).await?;
    Ok(server)
}

fn key(inventory: usize) -> Vec<u8> {
    format!("{PREFIX}{inventory}").into_bytes()
}

fn failed(status: Status) -> io::Error {
    io::Error::other(format!("etcd: {status}"))
}

pub struct EtcdClient {
    grpc: Grpc<Channel>,
}

impl EtcdClient {
    /// Opens a connection of its own.
    pub async fn connect(server: &Server) -> io::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", server.port)).map_err(io::Error::other)?;
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(io::Error::other)?;
        Ok(Self { grpc: Grpc::new(channel) })
    }

    async fn call<Q, R>(&mut self, path: &'static str, request: Q) -> io::Result<R>
    where
        Q: Message + 'static,
        R: Message + Default + 'static,
    {
        self.grpc.ready().await.map_err(io::Error::other)?;
        let path = PathAndQuery::from_static(path);
        let response = self.grpc.unary(Request::new(request), path, ProstCodec::<Q, R>::default()).await;
        response.map(tonic::Response::into_inner).map_err(failed)
    }

    async fn put(&mut self, inventory: usize, value: Vec<u8>) -> io::Result<()> {
        let request = PutRequest { key: key(inventory), value };
        self.call::<_, PutResponse>("/etcdserverpb.KV/Put", request).await.map(drop)
    }

    async fn transaction(&mut self, request: TxnRequest) -> io::Result<TxnResponse> {
        self.call("/etcdserverpb.KV/Txn", request).await
    }
}

impl Client for EtcdClient {
    async fn update(&mut self, inventory: usize, slot: u32, count: u32) -> io::Result<()> {
        self.put(inventory, value::with_count(slot, count)).await
    }

    /// Reads both, then writes both if neither has changed; otherwise reads both in the same round trip and tries again.
    async fn transfer(&mut self, from: usize, to: usize, slot: u32) -> io::Result<()> {
        let read = || [key(from), key(to)].map(read_op).to_vec();
        let mut response = self.transaction(TxnRequest { success: read(), ..TxnRequest::default() }).await?;
        loop {
            let [mut source, mut target] = both(response)?;
            let compare = [&source, &target].map(unchanged).to_vec();
            for (pair, change) in [(&mut source, -1), (&mut target, 1)] {
                let count = value::count(&pair.value, slot).and_then(|count| count.checked_add_signed(change));
                let count = count.ok_or_else(|| io::Error::other("etcd: not enough"))?;
                value::set_count(&mut pair.value, slot, count);
            }
            let success = [source, target].map(write_op).to_vec();
            response = self.transaction(TxnRequest { compare, success, failure: read() }).await?;
            if response.succeeded {
                return Ok(());
            }
        }
    }
}

fn read_op(key: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(request_op::Request::Range(RangeRequest { key })) }
}

fn write_op(KeyValue { key, value, .. }: KeyValue) -> RequestOp {
    RequestOp { request: Some(request_op::Request::Put(PutRequest { key, value })) }
}

fn unchanged(pair: &KeyValue) -> Compare {
    Compare { target: TARGET_MOD, key: pair.key.clone(), mod_revision: pair.mod_revision }
}

/// Returns the two inventories that a transaction read.
fn both(response: TxnResponse) -> io::Result<[KeyValue; 2]> {
    let pairs = response.responses.into_iter().filter_map(|part| match part.response? {
        response_op::Response::Range(range) => range.kvs.into_iter().next(),
        response_op::Response::Put(_) => None,
    });
    <[KeyValue; 2]>::try_from(pairs.collect::<Vec<_>>()).map_err(|_| io::Error::other("etcd: an inventory is missing"))
}

/// Watches all inventories.
pub struct EtcdSubscriber {
    stream: Streaming<WatchResponse>,
}

impl EtcdSubscriber {
    pub async fn connect(server: &Server) -> io::Result<Self> {
        let mut client = EtcdClient::connect(server).await?;
        client.grpc.ready().await.map_err(io::Error::other)?;
        let create = WatchCreateRequest { key: PREFIX.into(), range_end: PREFIX_END.into() };
        // The watch lasts as long as its request, which must not end.
        let requests = futures_util::StreamExt::chain(
            futures_util::stream::iter([WatchRequest { create: Some(create) }]),
            futures_util::stream::pending(),
        );
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let response = client.grpc.streaming(Request::new(requests), path, ProstCodec::default()).await;
        let mut stream: Streaming<WatchResponse> = response.map_err(failed)?.into_inner();
        let created = stream.message().await.map_err(failed)?;
        if !created.is_some_and(|response| response.created) {
            return Err(io::Error::other("etcd: the watch was not created"));
        }
        Ok(Self { stream })
    }
}

impl Subscriber for EtcdSubscriber {
    async fn changes(&mut self) -> io::Result<(u64, u64)> {
        let response = self.stream.message().await.map_err(failed)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((response.events.len() as u64, response.encoded_len() as u64))
    }
}
