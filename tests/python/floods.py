"""Cases 58 and 59: endless frames, and headers that expand."""

import collections
import struct
import threading
import time

import wire
from arena import MIB, size
from wire import END_HEADERS, END_STREAM, Closed, frame

CONNECTIONS = 3
SECONDS = size(0.25, 5)
CHUNK_FRAMES = 2_000
GET_INVENTORY = "/slotcast.v1.InventoryService/GetInventory"
SUBSCRIBE = "/slotcast.v1.InventoryService/SubscribeInventory"


def flood(arena, chunks, reads=True, own=(), seconds=SECONDS, connections=CONNECTIONS):
    """Sends the chunks of `chunks(connection)`, given as (frames, octets), as fast as the server reads them, and reconnects when the
    server closes the connection. Without `reads`, reads nothing. Returns how the connections ended, and how often."""
    ends, lock = collections.Counter(), threading.Lock()

    def one(number):
        sent, results = 0, []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with arena.connect(own=own, polite=reads, source=f"127.0.0.{66 + number}") as connection:
                    for frames, octets in chunks(connection):
                        connection.send(octets, max(0.01, deadline - time.monotonic()))
                        sent += frames
                        while reads and connection.receive():
                            pass
                        if time.monotonic() > deadline:
                            break
                    results.append("still open")
            except Closed as closed:
                results.append(f"{closed}")
            except TimeoutError:
                results.append("no longer read")
        with lock:
            ends["frames"] += sent
            ends.update(results)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    frames = ends.pop("frames")
    assert frames > 0, f"nothing was sent: {dict(ends)}"
    return f"{frames:,} frames; " + ", ".join(f"{count} {how}" for how, count in ends.most_common(4))


def again(kind, count=CHUNK_FRAMES, **fields):
    """Yields the same frame forever."""
    octets = frame(kind, **fields) * count

    def chunks(_):
        while True:
            yield count, octets

    return chunks


def rapid_reset(arena):
    """58 rapid reset: HEADERS and RST_STREAM in pairs, as fast as possible"""
    return flood(arena, resets(wire.call_headers(GET_INVENTORY), b""))


def rapid_reset_of_streams(arena):
    """58 rapid reset of subscriptions: each is opened whole and reset at once"""
    subscribe = wire.message(b"\x0a\x0f\x0a\x0dvictims-chest")
    return flood(arena, resets(wire.call_headers(SUBSCRIBE, [("slotcast-caller", "resetter")]), subscribe))


def resets(block, body):
    header = frame(wire.HEADERS, END_HEADERS, 0, block)
    data = frame(wire.DATA, END_STREAM, 0, body) if body else b""
    after = frame(wire.RST_STREAM, payload=struct.pack(">I", 8))

    def chunks(connection):
        while connection.next_stream < 1 << 30:
            first, connection.next_stream = connection.next_stream, connection.next_stream + 400
            octets = bytearray()
            for stream in range(first, first + 400, 2):
                for part in filter(None, (header, data, after)):
                    octets += part[:5] + struct.pack(">I", stream) + part[9:]
            yield 400, bytes(octets)

    return chunks


def continuation_flood(arena):
    """58 CONTINUATION flood: endless headers"""
    block = wire.literal("x-filler", b"a" * 1_000)

    def chunks(connection):
        stream = connection.take_stream()
        yield 1, frame(wire.HEADERS, 0, stream, wire.call_headers(GET_INVENTORY))
        while True:
            yield 64, frame(wire.CONTINUATION, 0, stream, block) * 64

    return flood(arena, chunks)


def empty_continuation_flood(arena):
    """58 CONTINUATION flood with nothing in them"""

    def chunks(connection):
        stream = connection.take_stream()
        yield 1, frame(wire.HEADERS, 0, stream, wire.call_headers(GET_INVENTORY))
        while True:
            yield CHUNK_FRAMES, frame(wire.CONTINUATION, 0, stream) * CHUNK_FRAMES

    return flood(arena, chunks)


def settings_flood(arena):
    """58 SETTINGS flood, acknowledgements read"""
    return flood(arena, again(wire.SETTINGS, payload=struct.pack(">HI", wire.INITIAL_WINDOW_SIZE, 70_000)))


def settings_flood_unread(arena):
    """58 SETTINGS flood, acknowledgements not read"""
    return flood(arena, again(wire.SETTINGS, payload=struct.pack(">HI", wire.INITIAL_WINDOW_SIZE, 70_000)), reads=False)


def ping_flood(arena):
    """58 PING flood, answers read"""
    return flood(arena, again(wire.PING, payload=b"slotcast"))


def ping_flood_unread(arena):
    """58 PING flood, answers not read"""
    return flood(arena, again(wire.PING, payload=b"slotcast"), reads=False)


def window_update_flood(arena):
    """58 WINDOW_UPDATE flood, one byte each"""

    def chunks(connection):
        stream = connection.begin(wire.call_headers(GET_INVENTORY), end=False)
        octets = (wire.window_update(0, 1) + wire.window_update(stream, 1)) * (CHUNK_FRAMES // 2)
        while True:
            yield CHUNK_FRAMES, octets

    return flood(arena, chunks)


def empty_data_flood(arena):
    """58 empty DATA flood on a call that never ends"""

    def chunks(connection):
        stream = connection.begin(wire.call_headers(GET_INVENTORY), end=False)
        octets = frame(wire.DATA, 0, stream) * CHUNK_FRAMES
        while True:
            yield CHUNK_FRAMES, octets

    return flood(arena, chunks)


def priority_flood(arena):
    """58 PRIORITY flood for streams that do not exist"""

    def chunks(_):
        first = 1
        while True:
            first = (first + 2 * CHUNK_FRAMES) % (1 << 30) | 1
            streams = range(first, first + 2 * CHUNK_FRAMES, 2)
            yield CHUNK_FRAMES, b"".join(frame(wire.PRIORITY, stream=s, payload=b"\0\0\0\0\x10") for s in streams)

    return flood(arena, chunks)


def unknown_frame_flood(arena):
    """58 flood of frames of an unknown type"""
    return flood(arena, again(0x42, payload=b"x" * 16))


def header_bomb(arena):
    """59 header bomb: 4 KB referenced 4,000 times in each of many calls, with a window of zero"""
    first = wire.call_headers(GET_INVENTORY) + wire.literal("x-bomb", b"b" * 3_900, first=0x40)
    later = wire.call_headers(GET_INVENTORY) + b"\xbe" * 4_000

    def chunks(connection):
        yield 1, frame(wire.HEADERS, END_HEADERS, connection.take_stream(), first)
        while True:
            blocks = [frame(wire.HEADERS, END_HEADERS, connection.take_stream(), later) for _ in range(20)]
            yield 20, b"".join(blocks)

    return flood(arena, chunks, own=[(wire.INITIAL_WINDOW_SIZE, 0)])


def header_bomb_unread(arena):
    """59 header bomb, answers not read"""
    bomb = wire.call_headers(GET_INVENTORY) + wire.literal("x-bomb", b"b" * 3_900, first=0x40) + b"\xbe" * 4_000

    def chunks(connection):
        while True:
            blocks = [frame(wire.HEADERS, END_HEADERS, connection.take_stream(), bomb) for _ in range(20)]
            yield 20, b"".join(blocks)

    return flood(arena, chunks, reads=False, own=[(wire.INITIAL_WINDOW_SIZE, 0)])


def many_small_headers(arena):
    """59 many headers: served up to the limit, rejected with a clear status above it"""
    results = []
    for count in (10, 100, 300, 1_000, 10_000, 100_000):
        extra = [(f"x-{index}", "v") for index in range(count)]
        with arena.connect() as connection:
            stream = connection.call(wire.call_headers(GET_INVENTORY, extra), wire.message(b"\x0a\x0dvictims-chest"))
            clear = stream.status is not None or stream.http == "431" or stream.reset is not None
            assert clear or connection.goaway is not None or connection.closed, f"{count} headers: {stream}"
            assert count > 100 or stream.status == 0, f"{count} headers: {stream.summary()}"
            results.append(f"{count}: {stream.summary() if clear else connection.closed}")
    return "; ".join(results)


def many_streams_without_window(arena):
    """59 many streams with a window of zero: subscriptions whose first frame can never be sent"""
    each, subscribe = size(500, 4_000), wire.message(b"\x0a\x0f\x0a\x0dvictims-chest")
    connections = []
    try:
        for number in range(4):
            connection = arena.connect(own=[(wire.INITIAL_WINDOW_SIZE, 0)])
            connections.append(connection)
            block = wire.call_headers(SUBSCRIBE, [("slotcast-caller", f"zero-{number}")])
            streams = []
            for _ in range(each):
                streams.append(connection.begin(block, subscribe))
                if len(streams) % 100 == 0:
                    connection.receive()
            answered = lambda: sum(bool(connection.known(stream).headers) for stream in streams) == each  # noqa: E731
            assert connection.until(answered, 20), "not all streams were answered"
            assert not any(connection.known(stream).data for stream in streams), "DATA without window"
        return f"{4 * each:,} streams open at once"
    finally:
        for connection in connections:
            connection.close()


# The allocator keeps some memory of thousands of simultaneous streams, once.
many_streams_without_window.growth_bytes_max = size(64, 192) * MIB
ATTACKS = [
    rapid_reset,
    rapid_reset_of_streams,
    continuation_flood,
    empty_continuation_flood,
    settings_flood,
    settings_flood_unread,
    ping_flood,
    ping_flood_unread,
    window_update_flood,
    empty_data_flood,
    priority_flood,
    unknown_frame_flood,
    header_bomb,
    header_bomb_unread,
    many_small_headers,
    many_streams_without_window,
]
