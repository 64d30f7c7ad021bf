#!/usr/bin/env python3
"""Conformance of the service with PyPI's connectrpc: Connect, gRPC-Web and gRPC, over HTTP/1.1 and HTTP/2, as JSON and binary.

Each client mutates, reads an error with its details, follows an inventory, and resumes after its connection broke. Its codec
rejects unknown JSON fields, and the replica of test_stream.py verifies every digest.

    SLOTCAST_BIN=target/debug/slotcast tests/python/test_connect.py

Needs the packages of requirements.txt.
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import pyqwest
from connectrpc.client import ConnectClientSync
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType

import test_stream
from protos import uuid7
from test_stream import Replica, Server, check_error_info, generate, without_ours

SERVICE = "slotcast.v1.InventoryService"
WAIT_S = 10
HTTP1, HTTP2 = "HTTP/1.1", "HTTP/2"
ROWS = [
    (ProtocolType.CONNECT, HTTP1, "json"),
    (ProtocolType.CONNECT, HTTP1, "proto"),
    (ProtocolType.CONNECT, HTTP2, "json"),
    (ProtocolType.CONNECT, HTTP2, "proto"),
    (ProtocolType.GRPC_WEB, HTTP1, "proto"),
    (ProtocolType.GRPC_WEB, HTTP2, "proto"),
    (ProtocolType.GRPC, HTTP2, "proto"),
]


class Client:
    """A client of connectrpc without generated code, for one protocol, HTTP version and codec."""

    def __init__(self, url, row, ca=None, token=None):
        self.protocol, self.version, self.codec = row
        self.headers = {"authorization": f"Bearer {token}"} if token else {"slotcast-caller": "python-connect"}
        version = pyqwest.HTTPVersion.HTTP1 if self.version == HTTP1 else pyqwest.HTTPVersion.HTTP2
        self.http = pyqwest.SyncClient(pyqwest.SyncHTTPTransport(http_version=version, tls_ca_cert=ca))
        strict_json = google_protobuf_json_codec(ignore_unknown_fields=False)
        codec = strict_json if self.codec == "json" else google_protobuf_binary_codec()
        # Requests are compressed by default, which the service accepts with Connect only.
        compression = {} if self.protocol == ProtocolType.CONNECT else {"send_compression": None}
        self.client = ConnectClientSync(url, codec=codec, protocol=self.protocol, http_client=self.http, **compression)

    def method(self, rpc):
        request, response = (getattr(test_stream.pb, f"{rpc}{side}") for side in ("Request", "Response"))
        kind = StreamType.SERVER_STREAM if rpc == "SubscribeInventory" else StreamType.UNARY
        names = dict(name=rpc, service_name=SERVICE, input=request, output=response)
        return MethodInfo(**names, stream_type=kind, idempotency_level=IdempotencyLevel.UNKNOWN)

    def call(self, rpc, **fields):
        request = getattr(test_stream.pb, f"{rpc}Request")(**fields)
        options = dict(headers=self.headers, timeout_ms=WAIT_S * 1_000)
        return self.client.execute_unary(request=request, method=self.method(rpc), **options)

    def mutate(self, rpc, key=None, **fields):
        return self.call(rpc, context=test_stream.pb.MutationContext(idempotency_key=key or uuid7()), **fields)

    def add(self, inventory_id, count, item="stone", key=None):
        pb = test_stream.pb
        return self.mutate("AddItem", key, add=pb.AddItem(inventory_id=inventory_id, stack=pb.Stack(item=item, count=count)))

    def create(self, inventory_id):
        self.mutate("CreateInventory", create=test_stream.pb.CreateInventory(inventory_id=inventory_id, layout="chest"))

    def get(self, inventory_id):
        return self.call("GetInventory", inventory_id=inventory_id).inventory

    def subscribe(self, watches):
        request = test_stream.pb.SubscribeInventoryRequest(inventories=watches)
        return self.client.execute_server_stream(request=request, method=self.method("SubscribeInventory"), headers=self.headers)


class Follower:
    """Reads the stream of one inventory in a thread; keeps the kinds of its frames and the error that ended it."""

    def __init__(self, client, inventory_id, replica=None):
        self.client, self.inventory_id = client, inventory_id
        self.replica = replica or Replica()
        self.frames, self.error = [], None
        self.changed = threading.Condition()
        watch = test_stream.pb.Watch(inventory_id=inventory_id)
        if self.replica.epoch is not None:
            watch.resume.epoch, watch.resume.revision = self.replica.epoch, self.replica.revision
        self.stream = client.subscribe([watch])
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            for message in self.stream:
                with self.changed:
                    for change in message.changes:
                        self.frames.append(self.replica.apply(change))
                    self.changed.notify_all()
            error = AssertionError("the server ended the stream without an error")
        except Exception as caught:
            error = caught
        with self.changed:
            self.error = error
            self.changed.notify_all()

    def until(self, done, what):
        with self.changed:
            assert self.changed.wait_for(lambda: done() or self.error, WAIT_S), f"{what}: not within {WAIT_S} s"
            if not done():
                raise AssertionError(f"{what}: the stream has ended") from self.error

    def converge(self, client):
        wanted = client.get(self.inventory_id)
        self.until(lambda: self.replica.is_at(wanted), f"{self.inventory_id}: revision {wanted.version.revision}")


class Proxy:
    """Forwards TCP connections to an address, until `cut` closes them."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.upstream, self.open = (host, int(port)), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                pair = client, socket.create_connection(self.upstream)
                self.open += pair
                for source, sink in (pair, pair[::-1]):
                    threading.Thread(target=forward, args=(source, sink), daemon=True).start()

    def cut(self):
        for side in self.open:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        self.open.clear()

    def close(self):
        self.listener.close()
        self.cut()


def forward(source, sink):
    with contextlib.suppress(OSError):
        while chunk := source.recv(65_536):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def refused(code, reason, **metadata):
    """Asserts that the call inside fails with a code and a google.rpc.ErrorInfo. Yields a function that returns a detail."""
    found = {}
    try:
        yield lambda name: getattr(test_stream.rich, name).FromString(found[f"google.rpc.{name}"])
    except ConnectError as error:
        found |= {detail.type_name: detail.message_bytes for detail in error.details}
        assert error.code == code, f"expected {code}, got {error.code}: {error.message}"
        assert "google.rpc.ErrorInfo" in found, f"the error has no google.rpc.ErrorInfo, only {sorted(found)}"
        check_error_info(test_stream.rich.ErrorInfo.FromString(found["google.rpc.ErrorInfo"]), reason, metadata)
    else:
        raise AssertionError(f"the call succeeded instead of failing with {reason}")


def a_mutation_is_applied_once(client, name):
    client.create(name)
    key = uuid7()
    first, second = (client.add(name, 100, key=key) for _ in range(2))
    assert (first.added, first.receipt.replayed, second.receipt.replayed) == (100, False, True), (first, second)
    (version,) = first.receipt.inventories
    inventory = client.get(name)
    assert version == inventory.version and version.revision == 2, f"receipt {version}, GetInventory {inventory.version}"
    assert [(entry.slot, entry.stack.item, entry.stack.count) for entry in inventory.stacks] == [(0, "stone", 64), (1, "stone", 36)]


def errors_have_details(client, name):
    pb = test_stream.pb
    remove = pb.RemoveItem(inventory_id=name, item=pb.ItemQuantity(item="coal", count=3))
    with refused(Code.FAILED_PRECONDITION, "NOT_ENOUGH", inventory_id=name, wanted="3", held="0"):
        client.mutate("RemoveItem", remove=remove)
    with refused(Code.INVALID_ARGUMENT, "UNKNOWN_ITEM") as detail:
        client.add(name, 1, "zinc")
    (violation,) = detail("BadRequest").field_violations
    assert violation.field == "add.stack.item", violation
    with refused(Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        list(client.subscribe([]))
    with refused(Code.NOT_FOUND, "INVENTORY_NOT_FOUND", inventory_id="nowhere"):
        client.get("nowhere")


def a_reader_follows_and_resumes(client, name, address, connect):
    pb = test_stream.pb
    proxy = Proxy(address)
    first = Follower(connect(proxy.port), name)
    first.converge(client)
    client.mutate("SetSlot", set=pb.SetSlot(
        inventory_id=name, at=pb.SlotRef(slot=9), stack=pb.Stack(item="coal", count=3, attributes=b"sharp")
    ))
    first.converge(client)
    proxy.cut()
    first.until(lambda: first.error, "the end of the stream whose connection was closed")
    assert isinstance(first.error, ConnectError), f"the stream ended with {first.error!r}"
    client.add(name, 1)
    second = Follower(connect(proxy.port), name, first.replica)
    second.converge(client)
    frames = first.frames, second.frames
    assert frames == (["full", "delta"], ["delta"]), f"expected a full state, then only what was missing: {frames}"
    proxy.close()


def check(row, server, scheme, **credentials):
    """Runs all checks with one protocol, HTTP version and codec, and prints a line."""
    protocol, version, codec = row
    title = f"{protocol.name}, {version}, {codec}{', TLS' if scheme == 'https' else ''}"
    began = time.monotonic()
    try:
        client = Client(f"{scheme}://{server.address}", row, **credentials)
        name = f"python-{protocol.name}-{version}-{codec}"
        a_mutation_is_applied_once(client, name)
        errors_have_details(client, name)
        connect = lambda port: Client(f"{scheme}://127.0.0.1:{port}", row, **credentials)  # noqa: E731
        a_reader_follows_and_resumes(client, name, server.address, connect)
    except Exception:
        print(f"FAILED {title}", flush=True)
        traceback.print_exc()
        sys.exit(1)
    print(f"ok {title}: a mutation, errors, a stream, a resumed stream: {time.monotonic() - began:.1f} s", flush=True)


def main():
    if "SLOTCAST_BIN" not in os.environ:
        sys.exit("set SLOTCAST_BIN to the server to test: SLOTCAST_BIN=target/debug/slotcast tests/python/test_connect.py")
    with tempfile.TemporaryDirectory(prefix="slotcast-connect-") as folder:
        folder = pathlib.Path(folder)
        (folder / "generated").mkdir()
        test_stream.pb, _, test_stream.rich = generate(folder / "generated")
        server = Server(folder / "plaintext")
        try:
            for row in ROWS:
                check(row, server, "http")
        finally:
            server.kill()
        command = [os.environ["SLOTCAST_BIN"], "dev-credentials", str(folder / "dev")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=without_ours(os.environ))
        server = Server(folder / "tls", "--config", str(folder / "dev" / "slotcast.toml"))
        try:
            token = (folder / "dev" / "service.token").read_text().strip()
            for row in ROWS:
                check(row, server, "https", ca=(folder / "dev" / "ca.pem").read_bytes(), token=token)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
