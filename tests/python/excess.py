"""Cases 60, 61, 40, 37 and slow connections: too many bytes, descriptors and streams, and clients that are too slow."""

import contextlib
import gzip
import time

import wire
from arena import MIB, size
from floods import GET_INVENTORY, SUBSCRIBE
from wire import Closed, Connection, Stream

OK, UNKNOWN, INVALID_ARGUMENT = 0, 2, 3
RESOURCE_EXHAUSTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL = 8, 11, 12, 13
VICTIMS = wire.message(b"\x0a\x0dvictims-chest")
WATCH_VICTIMS = wire.message(b"\x0a\x0f\x0a\x0dvictims-chest")
# Time until a connection must be served or closed, in addition to the server's own timeout.
GRACE_S = 10
KEEPALIVE_S = 1
IMPATIENT = {"preface_timeout_ms": 1_000, "keepalive_interval_ms": 1_000, "keepalive_timeout_ms": 1_000}


def gzip_bomb(arena):
    """60 gzip bomb: 64 MiB in about 300 KB, rejected without decompression"""
    bomb = gzip.compress(bytes(64 * MIB), 1)
    before, results = arena.server.rss(), set()
    for compressed in (1, 0):
        with arena.connect() as connection:
            block = wire.call_headers(GET_INVENTORY, [("grpc-encoding", "gzip")])
            stream = connection.call(block, wire.message(bomb, compressed))
            assert stream.status in (UNIMPLEMENTED, RESOURCE_EXHAUSTED), f"compressed {compressed}: {stream.summary()}"
            results.add(stream.summary())
    grown = arena.server.rss() - before
    assert grown < 16 * MIB, f"{grown / MIB:.1f} MiB more while it was refused"
    return "; ".join(sorted(results))


def oversize_messages(arena):
    """60 oversize messages: a length prefix of 4 GiB - 1, and 64 MiB of data"""
    results = []
    before = arena.server.rss()
    bodies = [wire.message(b"abc", size=0xFFFF_FFFF), wire.message(bytes(64 * MIB)), wire.message(bytes(4 * MIB + 1))]
    for body in bodies:
        with arena.connect() as connection:
            stream = connection.call(wire.call_headers(GET_INVENTORY), body, end=len(body) > 100, wait_s=20)
            assert stream.status in (OUT_OF_RANGE, RESOURCE_EXHAUSTED), f"{len(body)} bytes: {stream}"
            results.append(stream.summary())
    grown = arena.server.rss() - before
    assert grown < 32 * MIB, f"{grown / MIB:.1f} MiB more while they were refused"
    return "; ".join(sorted(set(results)))


def oversize_metadata(arena):
    """60 oversize metadata: a header of 1 KB is served, one of 64 KB or 1 MB rejected"""
    results = []
    for length in (1_000, 8_000, 64_000, 1_000_000):
        with arena.connect() as connection:
            block = wire.call_headers(GET_INVENTORY, [("x-large", "m" * length)])
            stream = connection.call(block, VICTIMS)
            how = f"{stream.summary()}{f' {connection.closed}' if connection.closed else ''}"
            assert length > 1_000 or stream.status == OK, f"{length} bytes: {how}"
            assert length < 64_000 or stream.status != OK, f"{length} bytes were accepted"
            assert how != "nothing", f"{length} bytes: no answer at all"
            results.append(f"{length}: {how}")
    return "; ".join(results)


def streams_of_one_player(arena):
    """40 10,000 streams of one player: RESOURCE_EXHAUSTED above the limit, other players unaffected"""
    total, connections, streams = size(2_000, 10_000), [], []
    block = wire.call_headers(SUBSCRIBE, [("slotcast-caller", "greedy"), ("slotcast-player", "greedy-player")])
    try:
        for _ in range(8):
            connection = arena.connect()
            connections.append(connection)
            mine = []
            for _ in range(total // 8):
                mine.append(connection.begin(block, WATCH_VICTIMS))
                if len(mine) % 50 == 0:
                    connection.receive()
            states = [connection.known(stream) for stream in mine]
            assert connection.until(lambda: all(state.ended or state.data for state in states), 20), "no answer"
            streams += states
        refused = [stream for stream in streams if stream.ended]
        served = len(streams) - len(refused)
        assert {stream.status for stream in refused} == {RESOURCE_EXHAUSTED}, {stream.summary() for stream in refused}
        assert served <= 16, f"{served} streams are open"
        with arena.connect() as other:
            player = wire.call_headers(SUBSCRIBE, [("slotcast-player", "modest")])
            stream = other.begin(player, WATCH_VICTIMS)
            assert other.until(lambda: other.known(stream).data, GRACE_S), "another player is not served"
        return f"{served} served, {len(refused):,} refused"
    finally:
        for connection in connections:
            connection.close()


def out_of_descriptors(arena):
    """61 out of file descriptors: open connections are served, the CPU stays idle, and the server recovers"""
    connections = []
    try:
        with contextlib.suppress(Closed):
            # Until the accept queue is full too.
            for number in range(300):
                connections.append(arena.connect(source=f"127.0.0.{66 + number % 8}", connect_s=0.3))
        served, before = [], None
        while before is None or len(served) > before:
            before = len(served)
            time.sleep(0.1)
            for connection in connections:
                with contextlib.suppress(Closed):
                    connection.until(lambda connection=connection: connection.greeted, 0.001)
            served = [connection for connection in connections if connection.greeted]
        refused = [connection for connection in connections if connection.closed]
        waiting = len(connections) - len(served) - len(refused)
        assert waiting + len(refused) > 100, f"{len(served)} of {len(connections)} were served: what was exhausted?"
        spun, began = arena.server.cpu_s(), time.monotonic()
        # Time under test: CPU time used in 1 s.
        time.sleep(1)
        percent = 100 * (arena.server.cpu_s() - spun) / (time.monotonic() - began)
        descriptors = arena.server.descriptors()
        for connection in served[:3]:
            assert connection.call(wire.call_headers(GET_INVENTORY), VICTIMS).status == OK, "who was served is no more"
    finally:
        for connection in connections:
            connection.close()
    serves_again(arena)
    results = f"{len(served)} served, {len(refused)} refused, {waiting} waiting, {descriptors} descriptors, {percent:.0f} % CPU"
    assert percent < 50, f"it spins: {results}"
    return results


def serves_again(arena):
    deadline = time.monotonic() + GRACE_S
    while True:
        with contextlib.suppress(Closed), arena.connect() as connection:
            if connection.call(wire.call_headers(GET_INVENTORY), VICTIMS).status == OK:
                return
        assert time.monotonic() < deadline, f"no new connection is served {GRACE_S} s later"
        time.sleep(0.1)


def trickles(arena, kinds, wait_s):
    """Opens connections that send `begin` and then single bytes of `then`. Returns {name: [opened, closed by the server]}."""
    connections, results = [], {name: [0, 0] for name, _, _ in kinds}
    for number in range(size(500, 2_000)):
        name, begin, then = kinds[number % len(kinds)]
        with contextlib.suppress(Closed):
            connection = Connection(arena.address, polite=False, preface=False, source=f"127.0.0.{66 + number % 8}")
            connections.append((connection, name, then))
            results[name][0] += 1
            connection.send(begin)
    open_still, deadline, sent = list(connections), time.monotonic() + wait_s, 0
    try:
        while open_still and time.monotonic() < deadline:
            for one in list(open_still):
                connection, name, then = one
                with contextlib.suppress(TimeoutError):
                    try:
                        connection.send(then[sent : sent + 1])
                        connection.receive()
                    except Closed:
                        open_still.remove(one)
                        results[name][1] += 1
            sent += 1
            # Time under test: the pace of a slow client.
            time.sleep(0.2)
        return results
    finally:
        for connection, _, _ in connections:
            connection.close()


def slowloris(arena):
    """slow connections: silent, or preface or headers of either HTTP byte by byte: closed after their timeout"""
    prologue = wire.PREFACE + wire.settings()
    headers = wire.frame(wire.HEADERS, wire.END_HEADERS, 1, wire.call_headers(GET_INVENTORY, [("x-long", "l" * 1_000)]))
    kinds = [("silent", b"", b""), ("preface", b"", wire.PREFACE), ("settings", wire.PREFACE, wire.settings((1, 1)))]
    kinds += [("headers", prologue, headers), *slow_heads()]
    ends = trickles(arena, kinds, GRACE_S)
    results = "; ".join(f"{name}: {closed} of {opened} closed" for name, (opened, closed) in ends.items())
    assert all(opened == closed for opened, closed in ends.values()), results
    return results


def slow_heads():
    """Returns first heads of HTTP/1.1 that have no end, however they begin."""
    head = b"POST / HTTP/1.1\r\nhost: slotcast\r\nx-long: "
    letters = b"l" * 1_000
    return [
        ("head of HTTP/1.1", b"", head + letters),
        ("head without its end", head + b"\r\n", b""),
        ("lines of a head", b"POST / HTTP/1.1\r\n", b"x:\r\n" * 250),
        ("empty lines", b"", b"\r\n" * 500),
        ("empty lines and a head", b"\r\n\r\n", head + letters),
        ("method PRI", b"PRI /" + b"l" * 40, letters),
    ]


def half_open(arena):
    """37 half-open connection: closed within the keepalive interval and timeout, with its stream"""
    wait_s = 2 * KEEPALIVE_S + GRACE_S
    peers, began = [], time.monotonic()
    try:
        for polite in (False, False):
            peer = arena.connect(polite=polite)
            stream = peer.begin(wire.call_headers(SUBSCRIBE, [("slotcast-caller", "vanished")]), WATCH_VICTIMS)
            assert peer.until(lambda peer=peer, stream=stream: peer.known(stream).data, 5), "no first frame"
            peers.append(peer)
        # The first keeps reading but never acknowledges a PING; the second stops completely.
        reader, silent = peers
        with contextlib.suppress(Closed):
            reader.until(lambda: False, wait_s)
        took_s = time.monotonic() - began
        assert reader.closed, f"a peer that answers no PING is kept for {took_s:.0f} s, after {reader.pings} PINGs"
        with contextlib.suppress(Closed):
            silent.until(lambda: False, 1.5)
        assert silent.closed, "a peer that is silent altogether is kept"
        return f"closed after {took_s:.1f} s ({reader.closed})"
    finally:
        for peer in peers:
            peer.close()


# The allocator keeps some memory of thousands of simultaneous streams or connections, once.
streams_of_one_player.growth_bytes_max = 64 * MIB
slowloris.growth_bytes_max = size(32, 64) * MIB
ATTACKS = [gzip_bomb, oversize_messages, oversize_metadata, streams_of_one_player]
