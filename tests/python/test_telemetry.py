#!/usr/bin/env python3
"""Telemetry of the service: traces, metrics and logs in an OTLP collector, /metrics checked by promtool, and probes.

    SLOTCAST_BIN=target/debug/slotcast tests/python/test_telemetry.py

Needs the packages of requirements.txt, and promtool.
"""

import collections
import concurrent.futures
import json
import pathlib
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import urllib.error
import urllib.request

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs, logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces, trace_service_pb2_grpc as traces_grpc

import pki
import test_stream as judge

SPAN_KIND_SERVER = 2

WAIT_S = 10
SERVICE = "slotcast.v1.InventoryService"
# Names that must never be in a label.
CALLER, PLAYER, CHEST, BAG = "caller-mallory", "player-steve", "inv-chest", "inv-bag"

# OpenTelemetry name: unit, kind by OTLP, Prometheus name, kind by Prometheus.
METERS = {
    "rpc.server.call.duration": ("s", "histogram", "rpc_server_call_duration_seconds", "histogram"),
    "slotcast.rpc.messages": ("{message}", "sum", "slotcast_rpc_messages_total", "counter"),
    "slotcast.rpc.calls.active": ("{call}", "sum", "slotcast_rpc_calls_active", "gauge"),
    "slotcast.syncs": ("{sync}", "sum", "slotcast_syncs_total", "counter"),
    "slotcast.sync.size": ("By", "sum", "slotcast_sync_size_bytes_total", "counter"),
    "slotcast.sync.full_size": ("By", "sum", "slotcast_sync_full_size_bytes_total", "counter"),
    "slotcast.frame.age": ("s", "histogram", "slotcast_frame_age_seconds", "histogram"),
    "slotcast.commit.duration": ("s", "histogram", "slotcast_commit_duration_seconds", "histogram"),
    "slotcast.commit.size": ("{mutation}", "histogram", "slotcast_commit_size", "histogram"),
    "slotcast.commit.failures": ("{commit}", "sum", "slotcast_commit_failures_total", "counter"),
    "slotcast.mutations": ("{mutation}", "sum", "slotcast_mutations_total", "counter"),
    "slotcast.commit.queue.length": ("{request}", "gauge", "slotcast_commit_queue_length", "gauge"),
    "slotcast.commit.queue.limit": ("{request}", "gauge", "slotcast_commit_queue_limit", "gauge"),
    "slotcast.inventories.hot": ("{inventory}", "gauge", "slotcast_inventories_hot", "gauge"),
    "slotcast.streams": ("{stream}", "gauge", "slotcast_streams", "gauge"),
    "slotcast.sync_limit.delay": ("s", "histogram", "slotcast_sync_limit_delay_seconds", "histogram"),
    "slotcast.refusals": ("{call}", "sum", "slotcast_refusals_total", "counter"),
    "slotcast.desyncs": ("{desync}", "sum", "slotcast_desyncs_total", "counter"),
    "slotcast.shadow.mismatches": ("{mismatch}", "sum", "slotcast_shadow_mismatches_total", "counter"),
    "slotcast.connections": ("{connection}", "gauge", "slotcast_connections", "gauge"),
    "slotcast.connections.refused": ("{connection}", "sum", "slotcast_connections_refused_total", "counter"),
    "slotcast.reloads": ("{reload}", "sum", "slotcast_reloads_total", "counter"),
    "slotcast.store.size": ("By", "gauge", "slotcast_store_size_bytes", "gauge"),
    "slotcast.store.limit": ("By", "gauge", "slotcast_store_limit_bytes", "gauge"),
    "slotcast.store.unfolded": ("{record}", "gauge", "slotcast_store_unfolded", "gauge"),
    "slotcast.store.maintenance.failing": ("", "gauge", "slotcast_store_maintenance_failing", "gauge"),
    "slotcast.journal.rows": ("{row}", "gauge", "slotcast_journal_rows", "gauge"),
    "slotcast.journal.size": ("By", "gauge", "slotcast_journal_size_bytes", "gauge"),
    "slotcast.history.size": ("By", "gauge", "slotcast_history_size_bytes", "gauge"),
    "slotcast.history.blocks": ("{block}", "gauge", "slotcast_history_blocks", "gauge"),
    "slotcast.history.earliest": ("s", "gauge", "slotcast_history_earliest_seconds", "gauge"),
    "slotcast.history.deleted_through": ("s", "gauge", "slotcast_history_deleted_through_seconds", "gauge"),
    "slotcast.history.retention": ("s", "gauge", "slotcast_history_retention_seconds", "gauge"),
    "slotcast.draining": ("", "gauge", "slotcast_draining", "gauge"),
    "slotcast.stream.duration": ("s", "histogram", "slotcast_stream_duration_seconds", "histogram"),
    "slotcast.build_info": ("", "gauge", "slotcast_build_info", "gauge"),
}


# Process metrics, which only Prometheus gets, with their type.
PROCESS = {
    "process_cpu_seconds_total": "counter",
    "process_resident_memory_bytes": "gauge",
    "process_open_fds": "gauge",
    "process_max_fds": "gauge",
    "process_start_time_seconds": "gauge",
}
# Maximum number of lines of /metrics after a few calls of every kind.
LINES_MAX = 520


class Collector:
    """An OTLP collector over gRPC that keeps everything it receives."""

    def __init__(self, certificate=None):
        self.spans, self.metrics, self.logs, self.resources, self.tenants = [], {}, [], [], set()
        self.changed = threading.Condition()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        traces_grpc.add_TraceServiceServicer_to_server(self.servicer(traces_grpc.TraceServiceServicer, self.take_traces), self.server)
        metrics_grpc.add_MetricsServiceServicer_to_server(
            self.servicer(metrics_grpc.MetricsServiceServicer, self.take_metrics), self.server
        )
        logs_grpc.add_LogsServiceServicer_to_server(self.servicer(logs_grpc.LogsServiceServicer, self.take_logs), self.server)
        if certificate:
            credentials = grpc.ssl_server_credentials([(certificate.key, certificate.chain)])
            self.endpoint = f"https://127.0.0.1:{self.server.add_secure_port('127.0.0.1:0', credentials)}"
        else:
            self.endpoint = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def servicer(self, base, take):
        def export(_self, request, context):
            with self.changed:
                self.tenants |= {value for name, value in context.invocation_metadata() if name == "tenant"}
                reply = take(request)
                self.changed.notify_all()
            return reply

        return type("Taking", (base,), {"Export": export})()

    def take_traces(self, request):
        for of_resource in request.resource_spans:
            self.resources.append(attributes(of_resource.resource.attributes))
            for of_scope in of_resource.scope_spans:
                self.spans.extend(of_scope.spans)
        return traces.ExportTraceServiceResponse()

    def take_metrics(self, request):
        for of_resource in request.resource_metrics:
            self.resources.append(attributes(of_resource.resource.attributes))
            for of_scope in of_resource.scope_metrics:
                self.metrics |= {metric.name: metric for metric in of_scope.metrics}
        return metrics.ExportMetricsServiceResponse()

    def take_logs(self, request):
        for of_resource in request.resource_logs:
            self.resources.append(attributes(of_resource.resource.attributes))
            for of_scope in of_resource.scope_logs:
                self.logs.extend(of_scope.log_records)
        return logs.ExportLogsServiceResponse()

    def wait_for(self, what, found):
        """Waits until `found()` is true and returns its result."""
        with self.changed:
            assert self.changed.wait_for(found, WAIT_S), f"{what} did not come; there are {[span.name for span in self.spans]}"
            return found()

    def trace(self, trace_id):
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}

    def stop(self):
        self.server.stop(None)


def attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class Tallying(judge.Client):
    """Counts the calls that it makes, by RPC and status."""

    def __init__(self, address, **metadata):
        super().__init__(address, CALLER, set())
        self.metadata += list(metadata.items())
        self.tally = collections.Counter()

    def call(self, rpc, request):
        try:
            reply = super().call(rpc, request)
        except grpc.RpcError as error:
            self.tally[rpc, error.code().name] += 1
            raise
        self.tally[rpc, "OK"] += 1
        return reply

    def add(self, count=1, **more):
        stack = pb.Stack(item="stone", count=count)
        return self.mutate("AddItem", add=pb.AddItem(inventory_id=CHEST, stack=stack), **more)

    def within(self, traceparent, call):
        """Makes a call within a trace."""
        self.metadata.append(("traceparent", traceparent))
        try:
            return call()
        finally:
            self.metadata.pop()


def create(client, inventory_id):
    client.mutate("CreateInventory", create=pb.CreateInventory(inventory_id=inventory_id, layout="chest"))


def get(server, path):
    """Returns the status, type and text of an admin page."""
    try:
        with urllib.request.urlopen(f"http://{server.admin_address}{path}", timeout=WAIT_S) as reply:
            return reply.status, reply.headers["content-type"], reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read().decode()


class Scrape:
    """A parsed page of /metrics."""

    def __init__(self, server):
        status, kind, self.text = get(server, "/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8"), (status, kind)
        self.types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", self.text, re.MULTILINE))
        self.values = {}
        for name, labels, value in re.findall(r"^([a-z_]+)(?:\{(.*)\})? (\S+)$", self.text, re.MULTILINE):
            pairs = frozenset(re.findall(r'(\w+)="([^"]*)"', labels))
            self.values[name, pairs] = float(value)

    def value(self, name, **labels):
        return self.values.get((name, frozenset(labels.items())), 0)

    def calls(self):
        """Returns the number of completed calls, by method and status."""
        found = {}
        for (name, labels), value in self.values.items():
            if name in ("rpc_server_call_duration_seconds_count", "slotcast_stream_duration_seconds_count"):
                labels = dict(labels)
                assert labels.get("rpc_system_name") == (None if "stream" in name else "grpc")
                found[labels["rpc_method"].removeprefix(f"{SERVICE}/"), labels["rpc_response_status_code"]] = int(value)
        return found


def scrape_until(server, is_there):
    """Scrapes until a condition is true: a call can end at the client slightly before it ends at the server."""
    end = time.monotonic() + WAIT_S
    while not is_there(scrape := Scrape(server)):
        assert time.monotonic() < end, f"it did not come to that:\n{scrape.text}"
    return scrape


def a_trace_is_complete(folder):
    """one trace contains the caller's span, the server's call, the commit and the frame; an unsampled one is empty"""
    collector = Collector()
    arguments = ["--otlp-endpoint", collector.endpoint, "--otlp-trace-percent", "100", "--log-format", "json"]
    log_path = folder / "trace.log"
    with open(log_path, "w") as log:
        server = judge.Server(folder / "trace", *arguments, log=log, environment={"SLOTCAST_LOG": "info,slotcast=debug"})
    try:
        client = Tallying(server.address)
        create(client, CHEST)
        follower = judge.Follower(client, [CHEST])
        follower.caught_up()
        unsampled, sampled, parent = secrets.token_hex(16), secrets.token_hex(16), secrets.token_hex(8)
        client.within(f"00-{unsampled}-{parent}-00", client.add)
        follower.converge()
        client.within(f"00-{sampled}-{parent}-01", client.add)
        follower.converge()
        wanted = {f"{SERVICE}/AddItem", "commit", "frame"}
        trace = collector.wait_for("the trace", lambda: (t := collector.trace(sampled)).keys() == wanted and t)
        call, commit, frame = trace[f"{SERVICE}/AddItem"], trace["commit"], trace["frame"]
        assert [call.parent_span_id.hex(), commit.parent_span_id, frame.parent_span_id] == [parent, call.span_id, commit.span_id]
        assert call.kind == SPAN_KIND_SERVER
        about = attributes(call.attributes)
        assert about["rpc.system.name"] == "grpc" and about["rpc.method"] == f"{SERVICE}/AddItem", about
        assert about["rpc.response.status_code"] == "OK" and about["client.address"] == "127.0.0.1", about
        about = attributes(commit.attributes)
        assert about == {"slotcast.batch.size": 1, "slotcast.mutation.outcome": "applied"}, about
        about = attributes(frame.attributes)
        assert (about["slotcast.frame.kind"], about["slotcast.frame.trigger"]) == ("delta", "news"), about
        assert about["slotcast.frame.bytes"] == follower.sizes[-1] and about["slotcast.frame.inventories"] == 1, about
        assert call.start_time_unix_nano <= commit.start_time_unix_nano <= frame.start_time_unix_nano <= frame.end_time_unix_nano
        follower.cancel()
        subscribed = f"{SERVICE}/SubscribeInventory"
        spans = collector.wait_for("the stream's own span", lambda: [s for s in collector.spans if s.name == subscribed])
        assert [link.span_id for link in frame.links] == [spans[0].span_id], "the frame is not linked to its stream"
        assert attributes(spans[0].attributes)["rpc.response.status_code"] == "CANCELLED"
        # Spans are sent in the order in which they end, and these have ended later.
        assert not collector.trace(unsampled), "what is not sampled was sent"

        def of_trace():
            return [record for record in collector.logs if record.trace_id.hex() == sampled]

        record = collector.wait_for("a log line of the call", of_trace)[0]
        assert record.body.string_value == "call ended" and record.span_id == call.span_id, record
        assert server.terminate() == 0
        lines = [json.loads(line) for line in log_path.read_text().splitlines()]
        ended = [line for line in lines if line.get("trace_id") == sampled]
        assert ended and ended[0]["span_id"] == call.span_id.hex(), "the log's own lines do not name the trace"
        names = {(r["service.name"], bool(r["service.version"]), bool(r["service.instance.id"])) for r in collector.resources}
        assert names == {("slotcast", True, True)}, names
        return f"{len(collector.spans)} spans, {len(collector.logs)} log lines"
    finally:
        server.kill()
        collector.stop()


def workload(server):
    """Makes calls of all kinds; returns the clients and the expected syncs."""
    client = Tallying(server.address)
    player = Tallying(server.address, **{"slotcast-player": PLAYER})
    create(client, CHEST)
    create(client, BAG)
    follower = judge.Follower(player, [CHEST], session="s-1")
    follower.caught_up()
    syncs = collections.Counter({("full", "initial"): 1})
    client.add(3)  # by nobody of that session
    follower.converge()
    syncs["delta", "news"] += 1
    client.add(2, session="s-1", key=(key := judge.uuid7()))
    follower.converge()
    syncs["delta", "echo"] += 1
    assert client.add(2, session="s-1", key=key).receipt.replayed
    version = client.get(CHEST).version
    wrong = [pb.PredictedDigest(inventory_id=CHEST, digest=pb.Digest(a=1, b=2))]
    client.add(1, session="s-1", predicted=wrong)
    follower.converge()
    syncs["full", "correction"] += 1
    remove = pb.RemoveItem(inventory_id=CHEST, item=pb.ItemQuantity(item="stone", count=64))
    with judge.refused(grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENOUGH"):
        client.mutate("RemoveItem", remove=remove)
    with judge.refused(grpc.StatusCode.NOT_FOUND, "INVENTORY_NOT_FOUND"):
        client.get("inv-nowhere")
    version = client.get(CHEST).version
    report = pb.ReportDesyncRequest(session="s-1", have=version)
    client.call("ReportDesync", report)
    assert follower.take().changes[0].HasField("full"), "a desync is answered with all slots"
    syncs["full", "correction"] += 1
    for path in ["/slotcast.v1.InventoryService/Zap", f"/{CALLER}/{PLAYER}"]:
        try:
            client.channel.unary_unary(path)(b"", timeout=WAIT_S)
            raise AssertionError(f"{path} is no method")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNIMPLEMENTED
            client.tally["_OTHER", "UNIMPLEMENTED"] += 1
    return client, player, follower, syncs


def metrics_are_exact(folder):
    """every metric exists in Prometheus and OTLP with its type and unit, and its value is exact"""
    collector = Collector()
    server = judge.Server(folder / "meters", "--otlp-endpoint", collector.endpoint, "--otlp-trace-percent", "0")
    try:
        client, player, follower, syncs = workload(server)
        during = Scrape(server)
        assert during.value("slotcast_streams") == 1
        assert during.value("slotcast_rpc_calls_active", rpc_method=f"{SERVICE}/SubscribeInventory") == 1
        follower.cancel()
        calls = client.tally + player.tally + collections.Counter({("SubscribeInventory", "CANCELLED"): 1})
        scrape = scrape_until(server, lambda scrape: scrape.calls() == calls)
        check_counts(scrape, calls, syncs, follower)
        missing = {name: kind for _, _, name, kind in METERS.values() if scrape.types.get(name) != kind}
        missing |= {name: kind for name, kind in PROCESS.items() if scrape.types.get(name) != kind}
        assert not missing, f"not there, or of another type: {missing}"
        assert scrape.value("process_resident_memory_bytes") > 1e6 and scrape.value("process_open_fds") > 5
        lines = len(scrape.text.splitlines())
        assert lines < LINES_MAX, f"{lines} lines after light use:\n{scrape.text}"
        for name, labels in scrape.values:
            for label, value in labels:
                named = [secret for secret in (CALLER, PLAYER, "inv-", "s-1", "anonymous") if secret in value]
                assert not named, f"{name} names {named} in {label}"
        checked = subprocess.run(["promtool", "check", "metrics"], input=scrape.text, text=True, capture_output=True)
        assert checked.returncode == 0 and not checked.stderr, checked.stdout + checked.stderr
        assert server.terminate() == 0
        by_otlp = {name: (metric.unit, metric.WhichOneof("data")) for name, metric in collector.metrics.items()}
        assert by_otlp == {name: (unit, kind) for name, (unit, kind, _, _) in METERS.items()}, by_otlp
        points = collector.metrics["slotcast.syncs"].sum.data_points
        sent = {(a["kind"], a["trigger"]): p.as_int for p in points if (a := attributes(p.attributes)) and p.as_int}
        assert sent == syncs, f"{sent} instead of {syncs}"
        assert not collector.spans, "of 0 percent there are spans"
        return f"{len(METERS)} meters, {sum(calls.values())} calls, {lines} lines"
    finally:
        server.kill()
        collector.stop()


def check_counts(scrape, calls, syncs, follower):
    counted = {
        (kind, trigger): int(scrape.value("slotcast_syncs_total", kind=kind, trigger=trigger))
        for kind in ("full", "delta")
        for trigger in ("initial", "news", "echo", "correction")
    }
    assert +collections.Counter(counted) == syncs, f"{counted} instead of {syncs}"
    size = sum(value for (name, _), value in scrape.values.items() if name == "slotcast_sync_size_bytes_total")
    assert size == sum(follower.sizes), f"{size} bytes instead of {sum(follower.sizes)}"
    assert scrape.value("slotcast_sync_full_size_bytes_total") > 0
    aged = {trigger: int(scrape.value("slotcast_frame_age_seconds_count", trigger=trigger)) for trigger in ("initial", "news", "echo", "correction")}
    # The first frame and a reported desync have no commit.
    assert aged == {"initial": 0, "news": 1, "echo": 1, "correction": 1}, aged
    assert scrape.value("slotcast_sync_limit_delay_seconds_count") == sum(syncs.values())
    outcomes = {o: int(scrape.value("slotcast_mutations_total", outcome=o)) for o in ("applied", "replayed", "rejected", "failed")}
    assert outcomes == {"applied": 5, "replayed": 1, "rejected": 1, "failed": 0}, outcomes
    assert scrape.value("slotcast_commit_size_sum") == outcomes["applied"]
    assert scrape.value("slotcast_commit_duration_seconds_count") == scrape.value("slotcast_commit_size_count") > 0
    refusals = {dict(labels)["reason"]: int(v) for (n, labels), v in scrape.values.items() if n == "slotcast_refusals_total" and v}
    assert refusals == {"NOT_ENOUGH": 1, "INVENTORY_NOT_FOUND": 1, "UNKNOWN_METHOD": 2}, refusals
    streams = {dict(labels)["rpc_method"] for (name, labels) in scrape.values if name == "slotcast_rpc_messages_total"}
    assert streams == {f"{SERVICE}/SubscribeInventory"}, f"{streams}: the messages of calls are the calls"
    streamed = scrape.value("slotcast_rpc_messages_total", rpc_method=f"{SERVICE}/SubscribeInventory", direction="sent")
    assert streamed == len(follower.sizes), f"{streamed} messages on the stream, not {len(follower.sizes)}"
    assert scrape.value("slotcast_desyncs_total") == 1 and scrape.value("slotcast_inventories_hot") >= 2
    rows, size = scrape.value("slotcast_journal_rows"), scrape.value("slotcast_journal_size_bytes")
    assert 3 < rows <= scrape.value("slotcast_commit_size_count") and size > 100 * rows, f"{rows} rows of {size} bytes"
    assert scrape.value("slotcast_history_blocks") == 0 and scrape.value("slotcast_store_maintenance_failing") == 0
    assert scrape.value("slotcast_history_retention_seconds") == 30 * 86400
    assert scrape.value("slotcast_commit_queue_limit") == 8192 and scrape.value("slotcast_store_size_bytes") > 0
    active = [value for (name, _), value in scrape.values.items() if name == "slotcast_rpc_calls_active"]
    assert len(active) > 5 and not any(active), "calls that have ended are active"


def export_uses_tls_and_headers(folder):
    """exports over TLS to a collector with a private CA, with headers that are not logged"""
    authority = pki.Authority()
    chain, key, _ = authority.issue(["127.0.0.1"])
    collector = Collector(types.SimpleNamespace(chain=chain, key=key))
    (folder / "collector-ca.pem").write_bytes(authority.pem)
    arguments = ["--otlp-endpoint", collector.endpoint, "--otlp-ca", str(folder / "collector-ca.pem")]
    log_path = folder / "far.log"
    with open(log_path, "w") as log:
        secret = {"SLOTCAST_OTLP_HEADERS": "tenant=sesame", "SLOTCAST_OTLP_TRACE_PERCENT": "100", "SLOTCAST_LOG": "info"}
        server = judge.Server(folder / "far", *arguments, log=log, environment=secret)
    try:
        create(Tallying(server.address), CHEST)
        collector.wait_for("a span", lambda: [span for span in collector.spans if span.name == "commit"])
        assert server.terminate() == 0
        assert collector.tenants == {"sesame"}, collector.tenants
        assert collector.metrics and "sesame" not in log_path.read_text()
        return f"{len(collector.spans)} spans"
    finally:
        server.kill()
        collector.stop()


def an_unreachable_collector_does_not_affect_calls(folder):
    """without a reachable collector, calls are served and SIGTERM ends the server in time"""
    silent = socket.create_server(("127.0.0.1", 0))
    refusing = socket.create_server(("127.0.0.1", 0))
    endpoints = {"silent": silent.getsockname()[1], "absent": refusing.getsockname()[1]}
    refusing.close()
    took = {}
    for name, port in endpoints.items():
        arguments = ["--otlp-endpoint", f"http://127.0.0.1:{port}", "--otlp-trace-percent", "100"]
        log_path = folder / f"{name}.log"
        with open(log_path, "w") as log:
            server = judge.Server(folder / name, *arguments, log=log, environment={"SLOTCAST_LOG": "info"})
        try:
            client = Tallying(server.address)
            create(client, CHEST)
            for _ in range(200):
                client.add(1)
            client.close()
            began = time.monotonic()
            assert server.terminate() == 0
            took[name] = time.monotonic() - began
            assert took[name] < 6, f"{name}: the end took {took[name]:.1f} s"
            lines = log_path.read_text().splitlines()
            assert len(lines) < 20, f"{name}: {len(lines)} lines"
            assert any("cannot export" in line for line in lines), f"{name}: no line reports the failed export\n{lines}"
        finally:
            server.kill()
    silent.close()
    return ", ".join(f"{name}: ended in {seconds:.1f} s" for name, seconds in took.items())


def probes_report_readiness(folder):
    """readiness is 200 while it serves, 503 with an explanation while it drains; gRPC health is on the same port"""
    server = judge.Server(folder / "probes", "--drain-delay-ms", "1000", "--drain-limit-ms", "3000")
    try:
        assert get(server, "/livez")[0] == 200
        end = time.monotonic() + WAIT_S
        while get(server, "/readyz")[2].startswith("starting"):
            assert time.monotonic() < end, "it does not become ready"
        assert get(server, "/readyz") == (200, "text/plain; charset=utf-8", "ready\n")
        with grpc.insecure_channel(server.admin_address) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert check(b"", timeout=WAIT_S) == b"\x08\x01", "not SERVING"
        host, port = server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port))):
            Tallying(server.address).call("GetCatalog", pb.GetCatalogRequest())
            server.process.terminate()
            end = time.monotonic() + WAIT_S
            while (status := get(server, "/readyz"))[0] == 200:
                assert time.monotonic() < end, "it goes on being ready"
            assert status[0] == 503 and status[2].startswith("draining"), status
            assert get(server, "/livez")[0] == 200 and Scrape(server).value("slotcast_draining") == 1
            assert server.process.wait(timeout=WAIT_S) == 0
    finally:
        server.kill()


CHECKS = [a_trace_is_complete, metrics_are_exact, export_uses_tls_and_headers, an_unreachable_collector_does_not_affect_calls, probes_report_readiness]


def main():
    global pb
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slotcast-telemetry-") as folder:
        folder = pathlib.Path(folder)
        (folder / "generated").mkdir()
        pb, judge.stubs, judge.rich = judge.generate(folder / "generated")
        judge.pb = pb
        for check in CHECKS:
            started = time.monotonic()
            try:
                note = check(folder)
            except Exception:
                print(f"FAILED {check.__doc__}", flush=True)
                traceback.print_exc()
                sys.exit(1)
            note = f" ({note})" if note else ""
            print(f"ok {check.__doc__}{note}: {time.monotonic() - started:.1f} s", flush=True)
    print(f"ok, {len(CHECKS)} checks in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
