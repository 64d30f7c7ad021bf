#!/usr/bin/env python3
"""The service as curl sees it: JSON over HTTP/1.1 and HTTP/2, streams, CORS, and requests that must be refused.

    SLOTCAST_BIN=target/debug/slotcast tests/python/test_curl.py

Needs curl 7.82 or newer, and the packages of requirements.txt.
"""

import base64
import dataclasses
import gzip
import json
import os
import pathlib
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

from google.protobuf import json_format

import test_stream
from protos import uuid7
from test_stream import Replica, Server, check_error_info, generate, without_ours

SERVICE = "slotcast.v1.InventoryService"
WAIT_S = 10
ATTEMPTS_MAX = 300
ORIGIN, STRANGER = "https://game.example", "https://other.example"
MESSAGE_BYTES_MAX = 65_536
COMPRESSED, END_STREAM, TRAILERS = 0x01, 0x02, 0x80
# A body whose compressed form is below the limit, and what it may add to the memory of the process, in bytes.
BOMB_BYTES, GROWTH_BYTES_MAX = 60 << 20, 16 << 20
# What connect-web sends and reads.
REQUEST_HEADERS = "authorization,content-type,connect-protocol-version,connect-timeout-ms,grpc-timeout,x-grpc-web,x-user-agent"
REQUEST_HEADERS += ",slotcast-caller,slotcast-player,traceparent"
EXPOSED_HEADERS = ["grpc-status", "grpc-message", "grpc-status-details-bin"]


@dataclasses.dataclass
class Reply:
    status: int
    version: str
    headers: dict
    body: bytes

    def json(self):
        assert self.headers.get("content-type") == "application/json", f"not JSON: {self}"
        return json.loads(self.body)

    def error(self, status, code):
        """Returns the error of a reply, which must have this status and code."""
        error = self.json()
        assert (self.status, error.get("code")) == (status, code), f"expected {status} {code}, got {self}"
        return error

    def access_control(self):
        return {name: value for name, value in self.headers.items() if name.startswith("access-control-")}


class Curl:
    """Calls one server with fixed options of curl."""

    def __init__(self, server, scheme, *options, folder):
        self.server, self.url, self.folder = server, f"{scheme}://{server.address}", folder
        self.options = ["--noproxy", "*", *options]

    def send(self, path, *options, body=None):
        """Sends a request: POST if there is a body."""
        headers = self.folder / "headers"
        command = ["curl", "--silent", "--show-error", "--max-time", str(WAIT_S), "--dump-header", str(headers), *self.options]
        command += ["--write-out", "%{stderr}%{http_code} %{http_version}", *options, self.url + path]
        if body is not None:
            command += ["--data-binary", "@-"]
        done = subprocess.run(command, input=body or b"", capture_output=True, check=False)
        text = done.stderr.decode()
        assert done.returncode == 0, f"curl failed with exit code {done.returncode}: {text}; {' '.join(command)}"
        status, version = text.split()[-2:]
        lines = headers.read_bytes().decode().strip().split("\r\n\r\n")[-1].split("\r\n")[1:]
        pairs = [line.split(":", 1) for line in lines]
        return Reply(int(status), version, {name.lower(): value.strip() for name, value in pairs}, done.stdout)

    def call(self, rpc, fields, *options):
        """Calls a unary RPC as in the documentation, with --json."""
        return self.send(f"/{SERVICE}/{rpc}", "--json", json.dumps(fields), *options)

    def mutate(self, rpc, fields, *options, key=None):
        return self.call(rpc, {"context": {"idempotencyKey": key or uuid7()}, **fields}, *options)

    def create(self, inventory_id):
        reply = self.mutate("CreateInventory", {"create": {"inventoryId": inventory_id, "layout": "chest"}})
        assert reply.status == 200, reply

    def add(self, inventory_id, count, item="stone", *options, key=None):
        add = {"inventoryId": inventory_id, "stack": {"item": item, "count": count}}
        return self.mutate("AddItem", {"add": add}, *options, key=key)

    def get(self, inventory_id):
        reply = self.call("GetInventory", {"inventoryId": inventory_id})
        assert reply.status == 200, reply
        return json_format.Parse(reply.body, test_stream.pb.GetInventoryResponse()).inventory

    def revision(self, inventory_id):
        return self.get(inventory_id).version.revision


class Stream:
    """A stream that curl reads: application/connect+json."""

    def __init__(self, curl, watches, *options, replica=None):
        self.replica, self.buffer, self.frames = replica or Replica(), b"", []
        body = json.dumps({"inventories": watches}).encode()
        headers = ["--header", "content-type: application/connect+json", *options]
        command = ["curl", "--silent", "--show-error", "--no-buffer", *curl.options, *headers, "--data-binary", "@-"]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process = subprocess.Popen([*command, f"{curl.url}/{SERVICE}/SubscribeInventory"], **pipes)
        self.process.stdin.write(envelope(body))
        self.process.stdin.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def take(self):
        """Returns the flags and the JSON of the next message."""
        deadline = time.monotonic() + WAIT_S
        while (parsed := split(self.buffer)) is None:
            ready, _, _ = select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no message within {WAIT_S} s; received: {self.buffer}"
            chunk = os.read(self.process.stdout.fileno(), 65_536)
            assert chunk, f"the response has ended without an end-of-stream message; received: {self.buffer}"
            self.buffer += chunk
        flags, body, self.buffer = parsed
        return flags, json.loads(body)

    def converge(self, inventory):
        """Applies messages until the replica equals an inventory from GetInventory."""
        while not self.replica.is_at(inventory):
            flags, fields = self.take()
            assert flags == 0, f"the stream has ended: {fields}"
            for change in json_format.ParseDict(fields, test_stream.pb.SubscribeInventoryResponse()).changes:
                self.frames.append(self.replica.apply(change))

    def error(self, code):
        """Takes messages to the end of the stream, which must have an error with this code. Returns the error."""
        flags = 0
        while not flags & END_STREAM:
            flags, fields = self.take()
        assert fields.get("error", {}).get("code") == code, f"expected {code}, got {fields}"
        return fields["error"]


def envelope(body, flags=0):
    return struct.pack(">BI", flags, len(body)) + body


def split(octets):
    """Returns the flags and the body of the first message, and the rest; None while it is incomplete."""
    if len(octets) < 5 or len(octets) - 5 < (size := struct.unpack_from(">I", octets, 1)[0]):
        return None
    return octets[0], octets[5 : 5 + size], octets[5 + size :]


def reason(error, expected, **metadata):
    """Checks that an error has a google.rpc.ErrorInfo with this reason and metadata, in base64 and as JSON."""
    details = {detail["type"]: detail for detail in error.get("details", [])}
    assert "google.rpc.ErrorInfo" in details, f"no google.rpc.ErrorInfo in {error}"
    value, debug = details["google.rpc.ErrorInfo"]["value"], details["google.rpc.ErrorInfo"].get("debug")
    info = test_stream.rich.ErrorInfo.FromString(base64.b64decode(value + "=" * (-len(value) % 4)))
    check_error_info(info, expected, metadata)
    assert debug == json_format.MessageToDict(info), f"debug is {debug}, value is {info}"
    return details


def a_mutation_is_applied_once(curl, name, version):
    """a mutation is applied once"""
    curl.create(name)
    key = uuid7()
    first, second = (curl.add(name, 100, key=key) for _ in range(2))
    assert (first.status, first.version) == (200, version), f"expected 200 over HTTP/{version}, got {first}"
    receipts = [reply.json()["receipt"] for reply in (first, second)]
    assert first.json()["added"] == 100, first
    assert [receipt.get("replayed", False) for receipt in receipts] == [False, True], receipts
    assert receipts[0]["inventories"] == receipts[1]["inventories"], "a retry returns the stored receipt"
    assert receipts[0]["inventories"][0]["revision"] == "2", "64-bit integers are strings"
    assert curl.revision(name) == 2


def errors_have_details(curl, name, _):
    """errors have their code, reason, metadata and details"""
    remove = {"remove": {"inventoryId": name, "item": {"item": "coal", "count": 3}}}
    error = curl.mutate("RemoveItem", remove).error(400, "failed_precondition")
    reason(error, "NOT_ENOUGH", inventory_id=name, wanted="3", held="0")
    details = reason(curl.add(name, 1, "zinc").error(400, "invalid_argument"), "UNKNOWN_ITEM")
    violations = details["google.rpc.BadRequest"]["debug"]["fieldViolations"]
    assert [violation["field"] for violation in violations] == ["add.stack.item"], violations
    reason(curl.call("GetInventory", {"inventoryId": "nowhere"}).error(404, "not_found"), "INVENTORY_NOT_FOUND")
    assert curl.revision(name) == 2, "a refused mutation changes nothing"


def a_reader_follows_and_resumes(curl, name, _):
    """a stream sends frames, and a reader resumes with a delta"""
    with Stream(curl, [{"inventoryId": name}]) as first:
        first.converge(curl.get(name))
        attributes = base64.b64encode(b"sharp").decode()
        stack = {"item": "coal", "count": 3, "attributes": attributes}
        assert curl.mutate("SetSlot", {"set": {"inventoryId": name, "at": {"slot": 9}, "stack": stack}}).status == 200
        first.converge(curl.get(name))
    curl.add(name, 1)
    cursor = {"epoch": first.replica.epoch, "revision": str(first.replica.revision)}
    with Stream(curl, [{"inventoryId": name, "resume": cursor}], replica=first.replica) as second:
        second.converge(curl.get(name))
    frames = first.frames, second.frames
    assert frames == (["full", "delta"], ["delta"]), f"expected a full state, then only what was missing: {frames}"


def a_refused_stream_ends_with_an_error(curl, *_):
    """a refused stream has its error in its last message"""
    with Stream(curl, []) as stream:
        reason(stream.error("invalid_argument"), "INVALID_ARGUMENT")


def a_deadline_ends_a_call(curl, name, _):
    """a deadline ends a call, and its retry is applied once"""
    before = curl.revision(name)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        key = uuid7()
        reply = curl.add(name, 1, "stone", "--header", "connect-timeout-ms: 1", key=key)
        if reply.status != 200:
            break
    else:
        # Most commits take longer than 1 ms.
        raise AssertionError(f"none of {ATTEMPTS_MAX} mutations exceeded a deadline of 1 ms")
    reason(reply.error(504, "deadline_exceeded"), "DEADLINE_EXCEEDED")
    assert curl.add(name, 1, key=key).status == 200
    assert curl.revision(name) == before + attempt, "a retry with the same key is applied once"


def messages_are_compressed(curl, name, _):
    """gzip both ways"""
    body = gzip.compress(json.dumps({"inventoryId": name}).encode())
    options = ["--header", "content-type: application/json", "--header", "content-encoding: gzip"]
    assert curl.send(f"/{SERVICE}/GetInventory", *options, body=body).status == 200
    plain, packed = curl.call("GetCatalog", {}), curl.call("GetCatalog", {}, "--header", "accept-encoding: gzip")
    assert "content-encoding" not in plain.headers, f"not asked for: {plain.headers}"
    assert packed.headers.get("content-encoding") == "gzip", f"asked for gzip: {packed.headers}"
    assert gzip.decompress(packed.body) == plain.body and len(packed.body) < len(plain.body)
    options = ["--header", "content-type: application/json", "--header", "content-encoding: br"]
    error = curl.send(f"/{SERVICE}/GetInventory", *options, body=body).error(501, "unimplemented")
    assert "gzip" in error["message"], f"the message does not name the supported encoding: {error}"


def text_is_decoded(curl, name, _):
    """gRPC-Web in base64"""
    request = test_stream.pb.GetInventoryRequest(inventory_id=name).SerializeToString()
    media = "application/grpc-web-text"
    options = ["--header", f"content-type: {media}", "--header", f"accept: {media}"]
    reply = curl.send(f"/{SERVICE}/GetInventory", *options, body=base64.b64encode(envelope(request)))
    assert reply.status == 200 and reply.headers["content-type"].startswith(media), reply
    # The server may encode each part separately, with padding between them.
    octets = b"".join(base64.b64decode(reply.body[at : at + 4]) for at in range(0, len(reply.body), 4))
    flags, body, octets = split(octets)
    assert flags == 0 and test_stream.pb.GetInventoryResponse.FromString(body).inventory.version.revision == curl.revision(name)
    flags, trailers, octets = split(octets)
    assert flags == TRAILERS and b"grpc-status:0" in trailers.replace(b" ", b"") and octets == b"", (flags, trailers, octets)


def other_requests_are_refused(curl, name, _):
    """other requests are refused: unknown methods, 405, 415, unknown and malformed JSON"""
    for path in ("/", "/nothing", f"/{SERVICE}/Nothing", "/other.Service/GetInventory"):
        reason(curl.send(path, "--json", "{}").error(501, "unimplemented"), "UNKNOWN_METHOD")
    for method in ("GET", "PUT", "DELETE"):
        refused = curl.send(f"/{SERVICE}/GetInventory", "--request", method)
        assert (refused.status, refused.headers.get("allow")) == (405, "POST"), f"{method}: {refused}"
    assert curl.send(f"/{SERVICE}/GetInventory?encoding=json&message=%7B%7D&connect=v1").status == 405, "GET of Connect"
    for media in ("text/plain", "application/x-www-form-urlencoded", "application/xml", "application/connect+json"):
        refused = curl.send(f"/{SERVICE}/GetInventory", "--header", f"content-type: {media}", body=b"{}")
        assert refused.status == 415, f"content type {media} of a unary call: {refused}"
    refused = curl.send(f"/{SERVICE}/SubscribeInventory", "--json", "{}")
    assert refused.status == 415, f"content type application/json of a stream: {refused}"
    unknown = curl.call("GetInventory", {"inventoryId": name, "inventoryid": "x"}).error(400, "invalid_argument")
    reason(unknown, "MALFORMED")
    assert "inventoryid" in unknown["message"], f"the message does not name the unknown field: {unknown}"
    for body in ("", "[]", "null", "{", '{"inventoryId": 7}', '{"inventoryId": "a"} {}'):
        refused = curl.send(f"/{SERVICE}/GetInventory", "--json", body)
        reason(refused.error(400, "invalid_argument"), "MALFORMED")
    refused = curl.call("GetInventory", {"inventoryId": name}, "--header", "connect-timeout-ms: soon")
    reason(refused.error(400, "invalid_argument"), "MALFORMED")


def a_late_body_does_not_hide_the_reply(curl, name, version):
    """a client that sends its body late can read why it is refused"""
    if version != "1.1":
        return
    body = b'{"inventoryId": "x"}'
    lines = [f"POST /{SERVICE}/GetInventory HTTP/1.1", "host: slotcast", f"origin: {STRANGER}", "content-type: application/json"]
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode()
    host, port = curl.server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        try:
            for part in (head, body[:8], body[8:]):
                connection.sendall(part)
                # Long enough for a reply, and for the client to learn that the connection is closed.
                time.sleep(0.05)
            reply = connection.recv(4_096)
        except OSError as error:
            raise AssertionError(f"the server closed the connection before it had read the body: {error}") from None
    assert reply.startswith(b"HTTP/1.1 403 "), reply


def large_requests_are_refused(curl, name, _):
    """requests above the limit are refused, and a gzip bomb costs no memory"""
    before = curl.revision(name)
    large = "x" * (MESSAGE_BYTES_MAX + 1)
    refused = curl.mutate("AddItem", {"add": {"inventoryId": name, "stack": {"item": "stone", "count": 1}}}, key=large)
    refused.error(400, "out_of_range")
    bomb = gzip.compress(bytes(BOMB_BYTES))
    assert len(bomb) < MESSAGE_BYTES_MAX, f"the compressed bomb has {len(bomb)} bytes"
    small = gzip.compress(bytes(MESSAGE_BYTES_MAX + 1))
    start = resident_bytes(curl.server)
    options = ["--header", "content-type: application/json", "--header", "content-encoding: gzip"]
    for body in (small, bomb):
        curl.send(f"/{SERVICE}/AddItem", *options, body=body).error(400, "out_of_range")
    growth = resident_bytes(curl.server) - start
    assert growth < GROWTH_BYTES_MAX, f"the process has {growth} bytes more after the bomb"
    assert curl.revision(name) == before, "a refused mutation changes nothing"


def origins_are_checked(curl, name, _):
    """CORS: pages of allowed origins only"""
    before = curl.revision(name)
    path = f"/{SERVICE}/AddItem"
    asks = ["--request", "OPTIONS", "--header", "access-control-request-method: POST"]
    asks += ["--header", f"access-control-request-headers: {REQUEST_HEADERS}"]
    preflight = curl.send(path, *asks, "--header", f"origin: {ORIGIN}")
    assert preflight.status in (200, 204), preflight
    allowed = preflight.access_control()
    assert allowed.get("access-control-allow-origin") == ORIGIN, preflight
    assert "POST" in allowed.get("access-control-allow-methods", ""), preflight
    listed = {header.strip().lower() for header in allowed.get("access-control-allow-headers", "").split(",")}
    missing = set(REQUEST_HEADERS.split(",")) - listed
    assert not missing, f"a page may not send {sorted(missing)}: {preflight}"
    assert int(allowed.get("access-control-max-age", 0)) > 0, f"a browser repeats the preflight for each call: {preflight}"
    for origin in (STRANGER, "null", ORIGIN.upper(), f"{ORIGIN}:8443", f"{ORIGIN}.evil.example", "http://game.example", ""):
        header = ["--header", f"origin: {origin}" if origin else "origin;"]
        expect_refusal(curl, name, asks, header)
    assert curl.revision(name) == before, "a page whose origin is not allowed has changed the inventory"
    done = curl.add(name, 1, "stone", "--header", f"origin: {ORIGIN}")
    failed = curl.add(name, 1, "zinc", "--header", f"origin: {ORIGIN}")
    assert (done.status, failed.status) == (200, 400), (done, failed)
    for reply in (done, failed):
        assert reply.access_control().get("access-control-allow-origin") == ORIGIN, f"the page cannot read {reply}"
        assert "origin" in reply.headers.get("vary", "").lower(), f"a cache may give this to another origin: {reply}"
        exposed = reply.access_control().get("access-control-expose-headers", "").lower()
        assert all(header in exposed for header in EXPOSED_HEADERS), f"the page cannot read {EXPOSED_HEADERS}: {reply}"


def no_origin_is_allowed_by_default(curl, name, _):
    """without the setting, no page is allowed"""
    asks = ["--request", "OPTIONS", "--header", "access-control-request-method: POST"]
    expect_refusal(curl, name, asks, ["--header", f"origin: {ORIGIN}"])


def expect_refusal(curl, name, asks, origin):
    """Checks that a page of an origin gets neither a preflight nor a mutation."""
    preflight, call = curl.send(f"/{SERVICE}/AddItem", *asks, *origin), curl.add(name, 1, "stone", *origin)
    for reply in (preflight, call):
        assert reply.status == 403 and reply.access_control() == {}, f"{origin}: {reply}"
    assert preflight.headers.get("content-type", "").startswith("text/plain"), f"{origin}: {preflight}"
    assert b"web.origins" in preflight.body, f"the text does not name the setting: {preflight}"
    reason(call.error(403, "permission_denied"), "ORIGIN_NOT_ALLOWED")


CLIENT = [
    a_mutation_is_applied_once,
    errors_have_details,
    a_reader_follows_and_resumes,
    a_refused_stream_ends_with_an_error,
    a_deadline_ends_a_call,
]
HTTP = [
    messages_are_compressed,
    text_is_decoded,
    other_requests_are_refused,
    large_requests_are_refused,
    origins_are_checked,
    a_late_body_does_not_hide_the_reply,
]


def run(checks, title, curl, version):
    name = f"curl {title}"
    for check in checks:
        began = time.monotonic()
        try:
            check(curl, name, version)
        except Exception:
            print(f"FAILED {title}: {check.__doc__}", flush=True)
            traceback.print_exc()
            sys.exit(1)
        print(f"ok {title}: {check.__doc__}: {time.monotonic() - began:.1f} s", flush=True)


def resident_bytes(server):
    with urllib.request.urlopen(f"http://{server.admin_address}/metrics", timeout=WAIT_S) as metrics:
        lines = metrics.read().decode().splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith("process_resident_memory_bytes "))


def main():
    if "SLOTCAST_BIN" not in os.environ:
        sys.exit("set SLOTCAST_BIN to the server to test: SLOTCAST_BIN=target/debug/slotcast tests/python/test_curl.py")
    with tempfile.TemporaryDirectory(prefix="slotcast-curl-") as folder:
        folder = pathlib.Path(folder)
        (folder / "generated").mkdir()
        test_stream.pb, _, test_stream.rich = generate(folder / "generated")
        limits = ["--limits-message-bytes", str(MESSAGE_BYTES_MAX), "--web-origins", f"{ORIGIN},https://play.example"]
        server = Server(folder / "plaintext", *limits)
        caller = ["--header", "slotcast-caller: curl"]
        try:
            for option, version in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")]:
                run(CLIENT + HTTP, f"HTTP/{version}", Curl(server, "http", option, *caller, folder=folder), version)
        finally:
            server.kill()
        command = [os.environ["SLOTCAST_BIN"], "dev-credentials", str(folder / "dev")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=without_ours(os.environ))
        server = Server(folder / "tls", "--config", str(folder / "dev" / "slotcast.toml"))
        token = (folder / "dev" / "service.token").read_text().strip()
        options = ["--cacert", str(folder / "dev" / "ca.pem"), "--header", f"authorization: Bearer {token}"]
        try:
            for option, version in [("--http1.1", "1.1"), ("--http2", "2")]:
                curl = Curl(server, "https", option, *options, folder=folder)
                run([*CLIENT, no_origin_is_allowed_by_default], f"HTTP/{version} over TLS", curl, version)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
