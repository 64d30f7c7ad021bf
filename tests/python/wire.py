"""A minimal HTTP/2 client: frames as bytes, and a connection that can violate the protocol.

Requests are written with literal headers; answers are read with PyPI's hpack. Nothing here is a well-behaved client: that
is grpcio's part.
"""

import contextlib
import dataclasses
import socket
import struct
import time

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
FRAME_BYTES_MAX = 16_384
WINDOW_BYTES = 65_535
# The attackers' address; the victims' is 127.0.0.1.
ATTACKER = "127.0.0.66"
ERRORS = (
    "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED FRAME_SIZE_ERROR REFUSED_STREAM "
    "CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
).split()


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def settings(*pairs):
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream, increment):
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", increment))


def reset(stream, code=8):
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", code))


def number(value, prefix_bits, first=0):
    """Encodes an integer of HPACK."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([first | value])
    octets, value = bytearray([first | limit]), value - limit
    while value >= 128:
        octets.append(value & 127 | 128)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def literal(name, value, first=0):
    """Encodes a literal header; `first` 0x40 also adds it to the dynamic table."""
    name, value = (part if isinstance(part, bytes) else part.encode() for part in (name, value))
    return bytes([first]) + number(len(name), 7) + name + number(len(value), 7) + value


def call_headers(path, extra=(), content_type="application/grpc", te="trailers", authority="slotcast"):
    """Returns the header block of a gRPC call; a header with the value None is omitted."""
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)]
    pairs += [("content-type", content_type), ("te", te), *extra]
    return b"".join(literal(name, value) for name, value in pairs if value is not None)


def message(body, compressed=0, size=None):
    """Returns a gRPC message with its prefix; `size` is the size in the prefix."""
    return struct.pack(">BI", compressed, len(body) if size is None else size) + body


def messages(octets):
    """Returns the complete messages in the data of a stream."""
    found = []
    while len(octets) >= 5 and len(octets) - 5 >= (size := struct.unpack_from(">I", octets, 1)[0]):
        found.append(octets[5 : 5 + size])
        octets = octets[5 + size :]
    return found


class Closed(Exception):
    """Raised when the server has closed the connection; the message has the cause."""


@dataclasses.dataclass
class Stream:
    """The received content of one stream."""

    headers: dict = dataclasses.field(default_factory=dict)
    data: bytearray = dataclasses.field(default_factory=bytearray)
    # Number of nonempty DATA frames.
    frames: int = 0
    ended: bool = False
    reset: int | None = None

    @property
    def http(self):
        return self.headers.get(":status")

    @property
    def status(self):
        """Returns the gRPC status as a number, or None."""
        code = self.headers.get("grpc-status")
        return None if code is None else int(code)

    def summary(self):
        """Returns a summary of the end of the call."""
        if self.status is not None:
            return f"grpc-status {self.status} {self.headers.get('grpc-message', '')}".strip()
        if self.reset is not None:
            return f"RST_STREAM {error_name(self.reset)}"
        return f"HTTP {self.http}" if self.http else "nothing"


def error_name(code):
    return ERRORS[code] if code < len(ERRORS) else hex(code)


class Connection:
    """One connection. `polite` decides whether it acknowledges SETTINGS and answers PINGs, `generous` whether it returns the
    window of what it has read."""

    def __init__(self, address, own=(), polite=True, generous=True, source=ATTACKER, receive_bytes=None, preface=True, connect_s=5):
        self.polite, self.generous = polite, generous
        self.decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self.buffer, self.streams, self.next_stream = bytearray(), {}, 1
        self.goaway, self.closed, self.pings, self.acks = None, None, 0, 0
        # The flow-control window of the peer.
        self.windows, self.initial_window, self.greeted = {0: WINDOW_BYTES}, WINDOW_BYTES, False
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(connect_s)
        host, port = address.rsplit(":", 1)
        try:
            self.socket.bind((source, 0))
            self.socket.connect((host, int(port)))
        except OSError as error:
            self.socket.close()
            raise Closed(f"connect: {error}") from error
        if preface:
            self.send(PREFACE + settings(*own))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def send(self, octets, wait_s=5):
        """Sends all octets. Raises Closed if the connection is closed, TimeoutError if the peer does not read."""
        if self.closed:
            raise Closed(self.closed)
        self.socket.settimeout(wait_s)
        try:
            self.socket.sendall(octets)
        except TimeoutError:
            raise
        except OSError as error:
            # Frames that the peer sent before it closed may still be readable.
            with contextlib.suppress(Closed):
                self.receive(0.05)
            raise Closed(self.how_closed(error.strerror)) from error

    def how_closed(self, otherwise):
        return self.closed or (f"GOAWAY {error_name(self.goaway)}" if self.goaway is not None else f"{otherwise}")

    def receive(self, wait_s=0.0, most=1 << 16):
        """Reads once, handles the complete frames and returns the number of bytes. Raises Closed at the end."""
        if self.closed:
            raise Closed(self.closed)
        self.socket.settimeout(wait_s)
        try:
            octets = self.socket.recv(most)
        except (BlockingIOError, TimeoutError):
            return 0
        except OSError as error:
            self.closed = self.how_closed(error.strerror)
            raise Closed(self.closed) from error
        if not octets:
            self.closed = self.how_closed("end of file")
            raise Closed(self.closed)
        self.buffer += octets
        while len(self.buffer) >= 9:
            size = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + size:
                break
            kind, flags, stream = self.buffer[3], self.buffer[4], int.from_bytes(self.buffer[5:9], "big")
            payload = bytes(self.buffer[9 : 9 + size])
            del self.buffer[: 9 + size]
            self.handle(kind, flags, stream, payload)
        return len(octets)

    def handle(self, kind, flags, stream, payload):
        if kind == SETTINGS:
            self.acks += flags & ACK
            if not flags & ACK:
                self.greeted = True
                for name, value in struct.iter_unpack(">HI", payload):
                    if name == INITIAL_WINDOW_SIZE:
                        self.initial_window = value
                self.answer(frame(SETTINGS, ACK))
        elif kind == PING:
            self.pings += 1
            if not flags & ACK:
                self.answer(frame(PING, ACK, payload=payload))
        elif kind == GOAWAY:
            self.goaway = struct.unpack_from(">I", payload, 4)[0]
        elif kind == WINDOW_UPDATE:
            self.windows[stream] = self.windows.get(stream, self.initial_window) + struct.unpack(">I", payload)[0]
        elif kind == HEADERS:
            # Headers of a forgotten stream still update the dynamic table.
            headers = self.decoder.decode(payload)
            self.known(stream).headers.update(headers)
        elif kind == DATA:
            self.known(stream).data += payload
            self.known(stream).frames += bool(payload)
            if self.generous and payload:
                self.answer(window_update(0, len(payload)) + window_update(stream, len(payload)), even_if_rude=True)
        elif kind == RST_STREAM:
            self.known(stream).reset = struct.unpack(">I", payload)[0]
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            self.known(stream).ended = True

    def answer(self, octets, even_if_rude=False):
        if self.polite or even_if_rude:
            with contextlib.suppress(Closed, TimeoutError):
                self.send(octets)

    def known(self, stream):
        return self.streams.setdefault(stream, Stream())

    def greet(self, wait_s=5):
        """Waits for the server's SETTINGS, and returns whether they came."""
        return self.until(lambda: self.greeted, wait_s)

    def until(self, done, wait_s):
        """Reads until `done()` or a timeout, and returns whether it was done."""
        deadline = time.monotonic() + wait_s
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.receive(min(left, 0.2))
        return True

    def take_stream(self):
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.streams[stream] = Stream()
        return stream

    def begin(self, block, body=b"", end=True):
        """Sends HEADERS, split if they are large, and DATA that fits the windows. Returns the stream's number."""
        stream = self.take_stream()
        self.send(header_frames(stream, block, 0 if body or not end else END_STREAM))
        if body:
            self.upload(stream, body, end)
        return stream

    def upload(self, stream, body, end=True):
        """Sends a body as the server grants window for it, until the stream ends."""
        self.windows.setdefault(stream, self.initial_window)
        view, state = memoryview(body), self.known(stream)
        while len(view):
            size = min(len(view), FRAME_BYTES_MAX, self.windows[0], self.windows[stream])
            if size > 0:
                last = END_STREAM if end and size == len(view) else 0
                self.windows[0], self.windows[stream] = self.windows[0] - size, self.windows[stream] - size
                self.send(frame(DATA, last, stream, bytes(view[:size])))
                view = view[size:]
            if len(view):
                self.receive(0 if size > 0 else 0.2)
                if state.ended or state.reset is not None:
                    return

    def outcome(self, stream, wait_s=5):
        """Waits for the end of a call; raises AssertionError if it hangs."""
        state = self.known(stream)
        with contextlib.suppress(Closed):
            assert self.until(lambda: state.ended or state.reset is not None, wait_s), f"no answer within {wait_s} s"
        return state

    def call(self, block, body=b"", end=True, wait_s=5):
        """Makes a call, and returns its end or the end of the connection."""
        with contextlib.suppress(Closed):
            return self.outcome(self.begin(block, body, end), wait_s)
        return Stream()


def header_frames(stream, block, flags=0):
    pieces = [block[start : start + FRAME_BYTES_MAX] for start in range(0, len(block), FRAME_BYTES_MAX)] or [b""]
    octets = frame(HEADERS, flags | (END_HEADERS if len(pieces) == 1 else 0), stream, pieces[0])
    for index, piece in enumerate(pieces[1:], 2):
        octets += frame(CONTINUATION, END_HEADERS if index == len(pieces) else 0, stream, piece)
    return octets
