"""Connect and gRPC-Web over HTTP/1.1: requests that are slow, huge or unread, and connections that end within one."""

import base64
import contextlib
import json
import os
import time

import misuse
import readers
import wire
from arena import MIB, size
from excess import GRACE_S, KEEPALIVE_S
from test_stream import uuid7
from wire import Closed
from wire1 import Connection1, chunk, request

SERVICE = "/slotcast.v1.InventoryService"
ADD_ITEM, GET_INVENTORY, SUBSCRIBE = f"{SERVICE}/AddItem", f"{SERVICE}/GetInventory", f"{SERVICE}/SubscribeInventory"
# The time for a whole body, and for the next head on a connection, is constant in the server.
BODY_S, NEXT_HEAD_S = 30, 60
PACE_S = 0.2
DEADLINE_EXCEEDED = {"504 deadline_exceeded", "200 deadline_exceeded", "200 grpc-status 4"}
# tonic-web reports a body that does not arrive in time as INTERNAL.
DEADLINE_EXCEEDED.add("200 grpc-status 13")


def add_item(count=1, item="stone"):
    """Returns the JSON of a request that adds items to the inventory of `misuse.add_one`."""
    add = {"inventoryId": "misused", "stack": {"item": item, "count": count}}
    return json.dumps({"context": {"idempotencyKey": uuid7()}, "add": add}).encode()


def get_inventory(inventory_id):
    return json.dumps({"inventoryId": inventory_id}).encode()


def prepare(arena):
    """Creates the inventory of `add_item`, and returns the number of its stones."""
    misuse.add_one(arena, "unused")
    return misuse.stones(arena)


def connect(arena, **options):
    return Connection1(arena.address, **options)


def ask(arena, octets, wait_s=5):
    """Sends octets on a connection of their own. Returns the reply, or None if the connection was closed without one."""
    with connect(arena) as connection:
        # A reply may come before all was sent.
        with contextlib.suppress(Closed, TimeoutError):
            connection.send(octets, wait_s)
        with contextlib.suppress(Closed):
            return connection.reply(wait_s=wait_s)


def how(reply):
    return reply.summary() if reply else "closed"


def slow_kinds():
    """Returns requests that end slowly, as (name, first octets, octet that is repeated, time until the server ends them)."""
    endless = ["content-length: 100000"]
    json_chunks = request(ADD_ITEM, b"186a0\r\n", framing=["transfer-encoding: chunked"])
    kinds = [
        ("JSON", request(ADD_ITEM, b"{", framing=endless), b" "),
        ("chunks", json_chunks, b" "),
        ("chunk extension", json_chunks[:-2] + b";", b"e"),
        ("trailer", json_chunks[:-7] + b"0\r\nx: ", b"t"),
        ("Connect stream", request(SUBSCRIBE, b"\0", "application/connect+json", framing=endless), b"\0"),
        ("gRPC-Web", request(ADD_ITEM, b"\0", "application/grpc-web+proto", framing=endless), b"\0"),
        ("gRPC-Web text", request(ADD_ITEM, b"A", "application/grpc-web-text", framing=endless), b"A"),
        ("expectation", request(ADD_ITEM, framing=["expect: 100-continue", *endless]), b""),
    ]
    kinds = [(*kind, BODY_S) for kind in kinds]
    first = request(GET_INVENTORY, get_inventory("victims-chest"))
    kinds += [(name, first + more, octet, NEXT_HEAD_S) for name, more, octet in [("idle", b"", b""), ("next head", b"POST /", b"x")]]
    return kinds


def slow_requests(arena):
    """HTTP/1.1 slow bodies, idle connections and slow later heads: held at little cost, and ended after 30 s or 60 s"""
    stones, rss, each = prepare(arena), arena.server.rss(), size(20, 100)
    began, open_now, closed = time.monotonic(), [], {}
    with contextlib.ExitStack() as stack:
        # Slow bodies of Connect over HTTP/2, of which one connection has many.
        busy = stack.enter_context(arena.connect())
        block = wire.call_headers(ADD_ITEM, content_type="application/json", te=None)
        streams = [busy.begin(block, b"{", end=False) for _ in range(each)]
        for name, begin, octet, limit_s in slow_kinds():
            for number in range(each):
                connection = stack.enter_context(connect(arena, source=f"127.0.0.{66 + number % 8}"))
                connection.send(begin)
                open_now.append((connection, name, octet, limit_s))
        opened, grown = len(open_now), 0
        deadline = time.monotonic() + size(0.4, NEXT_HEAD_S + GRACE_S)
        while time.monotonic() < deadline and open_now:
            for one in list(open_now):
                connection, name, octet, limit_s = one
                try:
                    connection.send(octet)
                    connection.receive()
                except Closed:
                    open_now.remove(one)
                    closed.setdefault(name, []).append((time.monotonic() - began, limit_s, connection))
            if time.monotonic() - began < BODY_S - 1:
                for stream in streams:
                    busy.send(wire.frame(wire.DATA, 0, stream, b" "))
            busy.receive()
            grown = max(grown, arena.server.rss() - rss)
            # Time under test: the pace of a slow client.
            time.sleep(PACE_S)
        assert grown < 16 * MIB + 64 * 1024 * opened, f"{grown / MIB:.1f} MiB more for {opened} slow requests"
        statuses = {busy.known(stream).http for stream in streams}
        note = f"{opened} held, {grown / MIB:.1f} MiB more"
        if size(True, False):
            assert not closed and statuses == {None}, f"ended too early: {sorted(closed)}, HTTP/2 {statuses}"
        else:
            assert not open_now, f"still open: { {name for _, name, _, _ in open_now} }"
            assert statuses == {"504"}, f"slow bodies over HTTP/2: {statuses}"
            for name, ends in closed.items():
                times = [took_s for took_s, _, _ in ends]
                wrong = [took_s for took_s, limit_s, _ in ends if not limit_s - 2 < took_s < limit_s + GRACE_S]
                assert not wrong, f"{name}: closed after {wrong[0]:.1f} s"
                note += f"; {name}: {min(times):.0f} to {max(times):.0f} s"
                if ends[0][1] == BODY_S:
                    replies = {how(connection.take()) for _, _, connection in ends}
                    assert replies <= DEADLINE_EXCEEDED, f"{name}: {replies}"
                    note += f" {replies}"
    assert misuse.stones(arena) == stones, "a request that did not end has changed something"
    return note


def huge_heads(arena):
    """HTTP/1.1 huge heads, chunk extensions and trailers: served up to the limit, above it rejected or the connection closed"""
    stones, rss, results, wrong = prepare(arena), arena.server.rss(), [], []
    served, refused, malformed = {200}, {400, 413, 414, 431}, {400}

    def with_chunks(*octets):
        return request(ADD_ITEM, b"".join(octets), framing=["transfer-encoding: chunked"])

    def with_headers(count):
        return request(ADD_ITEM, add_item(), headers=[f"x-{number}: v" for number in range(count)])

    large, end = b"x" * MIB, b"0\r\n\r\n"
    cases = [
        ("head of 8 KB", request(ADD_ITEM, add_item(), headers=["x-large: " + "m" * 8_000]), served),
        ("head of 64 KB", request(ADD_ITEM, add_item(), headers=["x-large: " + "m" * 64_000]), refused),
        ("head of 1 MiB", request(ADD_ITEM, add_item(), headers=["x-large: " + "m" * MIB]), refused),
        ("head without end", b"POST / HTTP/1.1\r\nx-large: " + large, refused),
        ("50 headers", with_headers(50), served),
        ("10,000 headers", with_headers(10_000), refused),
        ("path of 1 MiB", request("/" + "a" * MIB), refused),
        ("method of 1 MiB", large.upper(), refused),
        ("1 MiB of empty lines", b"\r\n" * (MIB // 2) + request(ADD_ITEM, add_item()), refused),
        ("extension of 1 KB", with_chunks(chunk(add_item(), b";" + large[:1_000]), end), served),
        ("extension of 1 MiB", with_chunks(chunk(add_item(), b";" + large), end), malformed),
        ("1,000 extensions", with_chunks(chunk(b" ", b";" + large[:1_000]) * 1_000, chunk(add_item()), end), malformed),
        ("a few trailers", with_chunks(chunk(add_item()), b"0\r\nx-one: 1\r\ncontent-length: 9\r\n\r\n"), served),
        ("trailer of 1 MiB", with_chunks(chunk(add_item()), b"0\r\nx-large: " + large + b"\r\n\r\n"), malformed),
        ("10,000 trailers", with_chunks(chunk(add_item()), b"0\r\n", b"x: v\r\n" * 10_000, b"\r\n"), malformed),
        ("10,000 chunks", with_chunks(chunk(b" ") * 10_000, chunk(add_item()), end), served),
        ("body of 64 MiB", request(ADD_ITEM, framing=[f"content-length: {64 * MIB}"]) + large * 8, refused),
        ("chunk of 64 MiB", with_chunks(b"4000000\r\n", large * 8), refused),
        ("body of 2^63 - 1", request(ADD_ITEM, framing=[f"content-length: {(1 << 63) - 1}"]), refused),
        ("64 MiB unread", request(ADD_ITEM, content_type="text/plain", framing=[f"content-length: {64 * MIB}"]) + large * 8, {415}),
    ]
    for name, octets, clear in cases:
        reply = ask(arena, octets)
        results.append(f"{name}: {how(reply)}")
        if not (reply.status in clear if reply else clear != served):
            wrong.append(results[-1])
        stones += clear == served
        assert misuse.stones(arena) == stones, f"{name}: {how(reply)}, but something else has changed"
    assert not wrong, "; ".join(wrong)
    grown = arena.server.rss() - rss
    assert grown < 32 * MIB, f"{grown / MIB:.1f} MiB more"
    return "; ".join(results)


def pipelined(arena):
    """HTTP/1.1 pipelining: 1,000 requests whose replies are not read cost no memory, and each gets its own reply once read"""
    requests, connections = 1_000, size(1, 20)
    rss, sent = arena.server.rss(), []
    padding = ["x-padding: " + "p" * 2_000]
    read = request(GET_INVENTORY, get_inventory("victims-chest"), headers=padding)
    # The replies to some requests name them, and so prove the order; the others cost the server less.
    named = {number: request(ADD_ITEM, add_item(item=f"item-{number}"), headers=padding) for number in range(0, requests, 10)}
    octets = b"".join(named.get(number, read) for number in range(requests))
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            connection = stack.enter_context(connect(arena, buffer_bytes=4_096))
            count = 0
            # The server stops reading once its replies are not read.
            while more := connection.send_some(octets[count : count + (1 << 16)]):
                count += more
                time.sleep(0.01)
            sent.append((connection, count))
        time.sleep(0.1)
        grown = arena.server.rss() - rss
        assert grown < 16 * MIB, f"{grown / MIB:.1f} MiB more for {connections} connections"
        accepted = max(count for _, count in sent)
        for connection, count in sent:
            assert count < len(octets), "the server reads on while its replies are not read"
            connection.resize(MIB)
            for number in range(requests):
                if count < len(octets):
                    count += connection.send_some(octets[count : count + (1 << 16)])
                reply = connection.reply()
                wanted = f'\\"item-{number}\\"' if number in named else '"victims-chest"'
                assert wanted.encode() in reply.body, f"reply {number}: {reply}"
            assert not connection.receive(), f"{bytes(connection.buffer)!r} after the last reply"
    return (
        f"at most {accepted:,} of {len(octets):,} bytes of requests were accepted before the replies were read, {grown / MIB:.1f} MiB more"
    )


def half_closed(arena):
    """HTTP/1.1 half-closed and reset connections: no reply to half a request, at most one mutation, and streams end"""
    results, each = [], size(10, 200)
    watch = wire.message(b'{"inventories":[{"inventoryId":"victims-chest"}]}')
    subscribe = request(SUBSCRIBE, watch, "application/connect+json")
    for name, cut, whole in [("head", 40, False), ("body", -9, False), ("whole request", None, True)]:
        stones = prepare(arena)
        with connect(arena) as connection:
            connection.send(request(ADD_ITEM, add_item())[:cut])
            connection.half_close()
            octets = connection.rest()
        added = misuse.stones(arena) - stones
        ok = octets.startswith(b"HTTP/1.1 200 ")
        assert added <= whole and (not ok or added), f"{name}: {added} added, {octets[:200]!r}"
        clear = {"head": (b"", b"HTTP/1.1 400 "), "body": (b"HTTP/1.1 400 ",)}.get(name, (b"", b"HTTP/1.1 200 "))
        assert octets[: len("HTTP/1.1 400 ")] in clear, f"{name}: {octets[:200]!r}"
        assert name != "body" or b"the request body cannot be read" in octets, f"{name}: {octets[:400]!r}"
        results.append(f"{name}: {octets[9:12].decode() or 'closed'}, {added} added")
    for name, octets in [("subscription", subscribe), ("head", subscribe[:40]), ("body", subscribe[:-9])]:
        for end in (Connection1.half_close, Connection1.close, Connection1.reset):
            with contextlib.ExitStack() as stack:
                connections = [stack.enter_context(connect(arena)) for _ in range(each)]
                for connection in connections:
                    connection.send(octets)
                    while name == "subscription" and b"caughtUp" not in connection.buffer:
                        assert connection.receive(5), "no first frame"
                    end(connection)
                for connection in connections if end is Connection1.half_close else []:
                    connection.rest()
        results.append(f"{name}: {3 * each} ended")
    return "; ".join(results)


def unread_streams(arena):
    """HTTP/1.1 unread streams: no memory for what is not read, and cut once the peer has accepted nothing for the stall limit"""
    _, _, _, streams = readers.protos()
    names, each = [f"unread-{number}-{uuid7()}" for number in range(2)], size(30, 200)
    fill(arena, names)
    found = streams.SubscribeInventoryRequest(inventories=[streams.Watch(inventory_id=name) for name in names]).SerializeToString()
    text = json.dumps({"inventories": [{"inventoryId": name} for name in names]}).encode()
    kinds = [("application/connect+json", text), ("application/connect+proto", found), ("application/grpc-web+proto", found)]
    # A failed attack before this one may still have connections.
    before = None
    while before != (before := arena.server.descriptors()):
        time.sleep(0.05)
    with contextlib.ExitStack() as stack:
        rss, began, connections = arena.server.rss(), time.monotonic(), []
        for number in range(each):
            kind, body = kinds[number % len(kinds)]
            connection = stack.enter_context(connect(arena, buffer_bytes=4_096))
            connection.send(request(SUBSCRIBE, wire.message(body), kind, headers=[f"slotcast-caller: unread-{number}"]))
            connections.append(connection)
        while (opened := arena.server.descriptors() - before) < each:
            assert time.monotonic() - began < 5, f"only {opened} of {each} are open"
            time.sleep(0.01)
        with arena.connect() as busy:
            readers.change_much(busy, names[0], 1_000, lambda: None)
        grown = arena.server.rss() - rss
        assert grown < 32 * MIB, f"{grown / MIB:.1f} MiB more for {each} streams that are not read"
        limit_s = 2 * KEEPALIVE_S + GRACE_S
        while (left := arena.server.descriptors() - before) > 2:
            assert time.monotonic() - began < limit_s, f"{left} of {each} streams are still open after {limit_s} s"
            time.sleep(0.05)
        took_s = time.monotonic() - began
        for connection in connections:
            # What the server's kernel still holds passes small buffers only slowly.
            connection.resize(MIB)
            octets = connection.rest()
            assert octets.startswith(b"HTTP/1.1 200 ") and not octets.endswith(b"0\r\n\r\n"), f"a whole reply: {octets[-99:]!r}"
    return f"{each} streams, {grown / MIB:.1f} MiB more, all cut after {took_s:.1f} s"


def fill(arena, names):
    """Creates inventories whose full state is larger than what the kernel buffers, with room for `readers.change_much`."""
    with connect(arena) as connection:
        for name in names:
            attributes = [base64.b64encode(os.urandom(1_000)).decode() for _ in range(24)]
            stacks = [{"slot": slot, "stack": {"item": "coal", "count": 1, "attributes": each}} for slot, each in enumerate(attributes)]
            create = {"inventoryId": name, "layout": "chest", "stacks": stacks}
            body = json.dumps({"context": {"idempotencyKey": uuid7()}, "create": create}).encode()
            connection.send(request(f"{SERVICE}/CreateInventory", body))
            reply = connection.reply()
            assert reply.status == 200, reply


for attack in (slow_requests, huge_heads, pipelined, half_closed):
    attack.rounds = size(1, 2)
IMPATIENT_ATTACKS = [unread_streams]
ATTACKS = [slow_requests, huge_heads, pipelined, half_closed]
