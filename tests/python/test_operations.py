#!/usr/bin/env python3
"""Operations with TLS, authentication and a settings file: certificates, keys and flags are rotated under load without a
failed call, and the server stops under load without losing a call.

    SLOTCAST_BIN=target/debug/slotcast tests/python/test_operations.py

Needs the packages of requirements.txt.
"""

import contextlib
import os
import pathlib
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import grpc
from cryptography import x509

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import pki  # noqa: E402
import protos  # noqa: E402
from protos import uuid7  # noqa: E402

ISSUER, AUDIENCE = "https://login.game.example", "slotcast"
WORKERS = 4
# Maximum number of items; then they are removed again.
HELD_MAX = 500
# Number of calls after which a worker reconnects.
CALLS_A_CONNECTION = 25
WAIT_S = 20
DRAIN_LIMIT_S = 5
HEALTH_PROTO = """
syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse { enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; } ServingStatus status = 1; }
service Health {
  rpc Check(HealthCheckRequest) returns (HealthCheckResponse);
  rpc Watch(HealthCheckRequest) returns (stream HealthCheckResponse);
}
"""


class Service:
    """`slotcast serve --config` with a folder that contains all files that an operator mounts."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = pki.Authority()
        self.signers = [pki.Signer("first", ISSUER, AUDIENCE)]
        self.renew_certificate()
        self.write_keys(*self.signers)
        self.write_settings()
        self.process = None
        self.start()

    def start(self):
        command = [os.environ["SLOTCAST_BIN"], "serve", "--config", str(self.folder / "slotcast.toml")]
        self.log = self.folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        ready, _, _ = select.select([self.process.stdout], [], [], WAIT_S)
        assert ready, f"it does not say where it listens; {self.log.read_text()}"
        # Both lines are printed together.
        self.address = self.summary("listening on https://")
        self.admin = self.summary("admin listening on http://")

    def summary(self, beginning):
        line = self.process.stdout.readline()
        assert line.startswith(beginning), f"instead of {beginning!r} it said {line!r}; {self.log.read_text()}"
        return line.removeprefix(beginning).strip()

    def write_settings(self, news_ms=100, delta_percent=100):
        pki.replace(
            self.folder / "slotcast.toml",
            f"""
listen = "127.0.0.1:0"
data = "{self.folder}/data"
[admin]
listen = "127.0.0.1:0"
[tls]
certificate = "{self.folder}/server.pem"
key = "{self.folder}/server.key"
[identity]
jwks = "{self.folder}/jwks.json"
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
[drain]
limit_ms = {DRAIN_LIMIT_S * 1_000}
[log]
filter = "warn"
[sync]
news_ms = {news_ms}
delta_percent = {delta_percent}
""",
        )

    def renew_certificate(self):
        certificate, key, serial = self.authority.issue(["127.0.0.1", "localhost"])
        pki.replace(self.folder / "server.pem", certificate)
        pki.replace(self.folder / "server.key", key)
        return serial

    def write_keys(self, *signers):
        pki.replace(self.folder / "jwks.json", pki.key_set(*signers))

    def served_serial(self):
        """Returns the serial number of the certificate on a new connection."""
        host, port = self.address.rsplit(":", 1)
        context = ssl.create_default_context(cadata=self.authority.pem.decode())
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True)).serial_number

    def connect(self):
        """Opens a separate connection; by default, gRPC shares one."""
        credentials = grpc.ssl_channel_credentials(root_certificates=self.authority.pem)
        return grpc.secure_channel(self.address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])

    def end(self):
        self.process.kill()
        self.process.wait()


def bearer(token):
    return [("authorization", f"Bearer {token}")]


def change(stub, inventory_id, key, by, token):
    """Adds (1) or removes (-1) one cobblestone."""
    context = pb.MutationContext(idempotency_key=key)
    if by > 0:
        stack = pb.Stack(item="cobblestone", count=1)
        request = pb.AddItemRequest(context=context, add=pb.AddItem(inventory_id=inventory_id, stack=stack))
        return stub.AddItem(request, metadata=bearer(token), timeout=WAIT_S)
    what = pb.ItemQuantity(item="cobblestone", count=1)
    request = pb.RemoveItemRequest(context=context, remove=pb.RemoveItem(inventory_id=inventory_id, item=what))
    return stub.RemoveItem(request, metadata=bearer(token), timeout=WAIT_S)


class Worker(threading.Thread):
    """Adds or removes one cobblestone per call, on old and new connections, until it is stopped or, if allowed, the server ends."""

    def __init__(self, service, number, tokens):
        super().__init__(daemon=True)
        self.service, self.inventory_id, self.tokens = service, f"box-{number}", tokens
        self.calls, self.held, self.by, self.failures, self.open_key = 0, 0, 1, [], None
        self.stopping, self.may_end = threading.Event(), False

    def run(self):
        while not self.stopping.is_set():
            with self.service.connect() as channel:
                stub = stubs.InventoryServiceStub(channel)
                for _ in range(CALLS_A_CONNECTION):
                    if self.stopping.is_set() or not self.call(stub):
                        return

    def call(self, stub):
        self.open_key = uuid7()
        self.by = {0: 1, HELD_MAX: -1}.get(self.held, self.by)
        try:
            change(stub, self.inventory_id, self.open_key, self.by, self.tokens["current"])
        except grpc.RpcError as error:
            self.failures.append(f"{error.code()}: {error.details()}")
            return not self.may_end
        self.answered()
        return True

    def answered(self):
        self.calls, self.held, self.open_key = self.calls + 1, self.held + self.by, None

    def end(self):
        self.stopping.set()
        self.join(WAIT_S)
        assert not self.is_alive(), "a call hangs"


def wait_until(what, holds):
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"it is still not so: {what}"
        time.sleep(0.05)


def code_of(call):
    try:
        call()
        return grpc.StatusCode.OK
    except grpc.RpcError as error:
        return error.code()


@contextlib.contextmanager
def load(service, tokens):
    with service.connect() as channel:
        stub = stubs.InventoryServiceStub(channel)
        for number in range(WORKERS):
            create = pb.CreateInventory(inventory_id=f"box-{number}", layout="chest")
            context = pb.MutationContext(idempotency_key=uuid7())
            request = pb.CreateInventoryRequest(context=context, create=create)
            stub.CreateInventory(request, metadata=bearer(tokens["current"]), timeout=WAIT_S)
    workers = [Worker(service, number, tokens) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    try:
        yield workers
    finally:
        for worker in workers:
            worker.end()


def more_calls(workers, calls):
    """Returns after every worker has made a number of further calls."""
    wanted = [(worker, worker.calls + calls) for worker in workers]
    wait_until(
        "every worker makes progress",
        lambda: all(worker.calls >= calls or worker.failures for worker, calls in wanted),
    )


def held(stub, inventory_id, token):
    request = pb.GetInventoryRequest(inventory_id=inventory_id)
    inventory = stub.GetInventory(request, metadata=bearer(token), timeout=WAIT_S).inventory
    return sum(entry.stack.count for entry in inventory.stacks)


def certificates_keys_and_flags_are_rotated_under_load_without_a_failed_call(folder):
    service = Service(folder)
    first = service.signers[0]
    tokens = {"current": first.token("lobby", "service")}
    admin_token = first.token("operator", "admin")
    try:
        with load(service, tokens) as workers, service.connect() as channel:
            stub = stubs.InventoryServiceStub(channel)
            for _ in range(3):
                more_calls(workers, CALLS_A_CONNECTION)
                serial = service.renew_certificate()
                wait_until("the new certificate is shown", lambda: service.served_serial() == serial)
            pki.replace(folder / "server.key", service.authority.issue(["127.0.0.1"])[1])
            more_calls(workers, 2 * CALLS_A_CONNECTION)
            assert service.served_serial() == serial, "a key that does not fit changes nothing"

            second = pki.Signer("second", ISSUER, AUDIENCE, "ES256")
            fresh = second.token("lobby", "service")
            probe = lambda token: code_of(lambda: held(stub, "box-0", token))  # noqa: E731
            assert probe(fresh) == grpc.StatusCode.UNAUTHENTICATED, "nobody knows the new key yet"
            service.write_keys(first, second)
            wait_until("the new key is taken", lambda: probe(fresh) == grpc.StatusCode.OK)
            stale, tokens["current"] = tokens["current"], fresh
            more_calls(workers, 1)
            service.write_keys(second)
            wait_until("the old key is gone", lambda: probe(stale) == grpc.StatusCode.UNAUTHENTICATED)
            pki.replace(folder / "jwks.json", '{"keys": [')
            more_calls(workers, 2 * CALLS_A_CONNECTION)
            assert probe(fresh) == grpc.StatusCode.OK, "a file that is wrong changes nothing"
            service.write_keys(first, second)
            wait_until("both keys are taken", lambda: probe(stale) == grpc.StatusCode.OK)

            admins = stubs_admin.AdminServiceStub(channel)
            news_ms = lambda: admins.GetRollout(  # noqa: E731
                pb.GetRolloutRequest(), metadata=bearer(admin_token), timeout=WAIT_S
            ).rollout.news_ms
            for wanted, percent in [(250, 0), (90, 100), (70, 50)]:
                service.write_settings(news_ms=wanted, delta_percent=percent)
                wait_until("the flags are taken", lambda: news_ms() == wanted)
                more_calls(workers, CALLS_A_CONNECTION)
        failures = [failure for worker in workers for failure in worker.failures]
        assert not failures, f"{len(failures)} calls failed: {failures[:3]}"
        with service.connect() as channel:
            stub = stubs.InventoryServiceStub(channel)
            for worker in workers:
                assert held(stub, worker.inventory_id, tokens["current"]) == worker.held
        calls = sum(worker.calls for worker in workers)
        print(f"  {calls} calls over {calls // CALLS_A_CONNECTION}+ connections, none failed: 4 certificates, 3 key sets, 3 rollouts")
    finally:
        service.end()


def calls_in_flight_at_sigterm_are_answered_or_applied_by_their_retry(folder):
    service = Service(folder)
    token = service.signers[0].token("lobby", "service")
    host, port = service.address.rsplit(":", 1)
    silent = socket.create_connection((host, int(port)))
    silent_admin = socket.create_connection(tuple(service.admin.rsplit(":", 1)))
    plain = grpc.insecure_channel(service.admin)
    watched = health_grpc.HealthStub(plain).Watch(health.HealthCheckRequest(service="slotcast.v1.InventoryService"))
    assert next(watched).status == health.HealthCheckResponse.SERVING
    try:
        with load(service, {"current": token}) as workers, service.connect() as channel:
            stream = follow(stubs.InventoryServiceStub(channel), token)
            more_calls(workers, CALLS_A_CONNECTION)
            for worker in workers:
                worker.may_end = True
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            exit_code = service.process.wait(timeout=DRAIN_LIMIT_S + 10)
            took = time.monotonic() - began
            assert exit_code == 0, f"it ended with {exit_code}: {service.log.read_text()[-2_000:]}"
            assert took <= DRAIN_LIMIT_S + 1, f"it took {took:.1f} s"
            stream.join(WAIT_S)
            assert stream.ended == grpc.StatusCode.UNAVAILABLE, stream.ended
        codes = {failure.split(":")[0] for worker in workers for failure in worker.failures}
        assert codes <= {"StatusCode.UNAVAILABLE"}, codes
        finish_elsewhere(service, workers, token)
        print(f"  exit 0 after {took * 1_000:.0f} ms, with a silent connection, an open health watch and an open stream")
    finally:
        for connection in (silent, silent_admin, plain):
            connection.close()
        service.end()


def finish_elsewhere(service, workers, token):
    """Retries every unanswered call with its key, and checks that each was applied once."""
    service.start()
    retried = 0
    with service.connect() as channel:
        stub = stubs.InventoryServiceStub(channel)
        for worker in workers:
            if worker.open_key:
                change(stub, worker.inventory_id, worker.open_key, worker.by, token)
                worker.answered()
                retried += 1
            assert held(stub, worker.inventory_id, token) == worker.held, "a call was lost or done twice"
    print(f"  {sum(worker.calls for worker in workers)} calls, {retried} of them applied by their retry")


class follow(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, stub, token):
        super().__init__(daemon=True)
        self.ended = None
        watch = pb.Watch(inventory_id="box-0")
        request = pb.SubscribeInventoryRequest(inventories=[watch])
        self.stream = stub.SubscribeInventory(request, metadata=bearer(token))
        next(self.stream)
        self.start()

    def run(self):
        try:
            for _ in self.stream:
                pass
            self.ended = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.ended = error.code()


TESTS = [
    certificates_keys_and_flags_are_rotated_under_load_without_a_failed_call,
    calls_in_flight_at_sigterm_are_answered_or_applied_by_their_retry,
]


def main():
    failed = 0
    for test in TESTS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            try:
                test(pathlib.Path(folder))
                print(f"ok    {test.__name__}, {time.monotonic() - began:.1f} s", flush=True)
            except Exception:
                failed += 1
                traceback.print_exc()
                print(f"FAIL  {test.__name__}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as generated:
        load_module = protos.generate(pathlib.Path(generated), {"health.proto": HEALTH_PROTO})
        pb, stubs = protos.messages(), load_module("slotcast.v1.service_pb2_grpc")
        stubs_admin = load_module("slotcast.v1.admin_pb2_grpc")
        health, health_grpc = load_module("health_pb2"), load_module("health_pb2_grpc")
        sys.exit(main())
