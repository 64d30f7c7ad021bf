"""A minimal HTTP/1.1 client: requests as bytes, and a connection that can violate the protocol.

It reads replies strictly: octets that are not a whole reply are an error.
"""

import contextlib
import dataclasses
import json
import socket
import struct
import time

from wire import ATTACKER, Closed

HEAD_BYTES_MAX = 1 << 16


def request(path, body=b"", content_type="application/json", headers=(), framing=None, method="POST", version="HTTP/1.1"):
    """Returns a request. `headers` and `framing` are lines; `framing` replaces `content-length`."""
    lines = [f"{method} {path} {version}", "host: slotcast", f"content-type: {content_type}", *headers]
    lines += [f"content-length: {len(body)}"] if framing is None else framing
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body


def chunk(data, extension=b""):
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def chunked(*parts):
    """Returns a whole chunked body with one chunk for each part."""
    return b"".join(map(chunk, parts)) + b"0\r\n\r\n"


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict
    body: bytes

    def summary(self):
        """Returns the HTTP status, and the code of Connect or the status of gRPC-Web."""
        kind = self.headers.get("content-type", "")
        code = ""
        if kind == "application/json" and self.status != 200:
            code = json.loads(self.body)["code"]
        elif kind.startswith("application/connect+"):
            # The last message has the code.
            code = json.loads(self.body[self.body.rindex(b'{"error"') :])["error"]["code"] if b'{"error"' in self.body else ""
        elif kind.startswith("application/grpc-web"):
            trailers = self.body.rpartition(b"grpc-status:")[2].split(b"\r\n")[0].decode()
            code = f"grpc-status {self.headers.get('grpc-status', trailers)}"
        return f"{self.status} {code}".strip()


class Connection1:
    """One connection. `buffer_bytes` is the size of its buffers in the system."""

    def __init__(self, address, source=ATTACKER, buffer_bytes=None, connect_s=5):
        self.buffer, self.socket = bytearray(), socket.socket()
        if buffer_bytes:
            self.resize(buffer_bytes)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(connect_s)
        host, port = address.rsplit(":", 1)
        try:
            self.socket.bind((source, 0))
            self.socket.connect((host, int(port)))
        except OSError as error:
            self.socket.close()
            raise Closed(f"connect: {error}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def reset(self):
        """Closes the connection with a reset instead of an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def half_close(self):
        """Sends the end of the connection, and can still read."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def resize(self, buffer_bytes):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)

    def send(self, octets, wait_s=5):
        """Sends all octets. Raises Closed if the connection is closed, TimeoutError if the peer does not read."""
        self.socket.settimeout(wait_s)
        try:
            self.socket.sendall(octets)
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(f"{error.strerror}") from error

    def send_some(self, octets):
        """Sends as much as fits the buffers of both sides, and returns how much that was."""
        self.socket.settimeout(0)
        try:
            return self.socket.send(octets)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Closed(f"{error.strerror}") from error

    def receive(self, wait_s=0.0):
        """Reads once, and returns the number of octets. Raises Closed at the end."""
        self.socket.settimeout(wait_s)
        try:
            octets = self.socket.recv(1 << 16)
        except (BlockingIOError, TimeoutError):
            return 0
        except OSError as error:
            raise Closed(f"{error.strerror}") from error
        if not octets:
            raise Closed("end of file")
        self.buffer += octets
        return len(octets)

    def reply(self, method="POST", wait_s=5):
        """Returns the next final reply. Raises Closed if the connection ends before one begins, AssertionError if it takes too
        long or is not well-formed."""
        deadline = time.monotonic() + wait_s
        while (found := self.take(method)) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"no reply within {wait_s} s, only {bytes(self.buffer[:200])!r}"
            try:
                self.receive(min(left, 0.2))
            except Closed as closed:
                assert not self.buffer or "reset" in f"{closed}", f"cut within a reply: {bytes(self.buffer[:200])!r}"
                raise
        return found

    def take(self, method="POST"):
        """Takes a whole final reply out of the buffer. Returns None if there is none."""
        head, end, _ = bytes(self.buffer[:HEAD_BYTES_MAX]).partition(b"\r\n\r\n")
        version = head[: len(b"HTTP/1.1 ")]
        assert b"HTTP/1.1 ".startswith(version) or b"HTTP/1.0 ".startswith(version), f"no reply: {head[:200]!r}"
        if not end:
            assert len(head) < HEAD_BYTES_MAX, "the head of a reply has no end"
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = len(head) + 4
        if status < 200:
            del self.buffer[:size]
            return self.take(method)
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            found = whole_chunks(self.buffer, size)
            if found is None:
                return None
            body, size = found
        else:
            length = int(headers["content-length"])
            if len(self.buffer) < size + length:
                return None
            body, size = bytes(self.buffer[size : size + length]), size + length
        del self.buffer[:size]
        return Reply(status, headers, body)

    def rest(self, wait_s=5):
        """Reads until the end of the connection, and returns what came."""
        deadline = time.monotonic() + wait_s
        with contextlib.suppress(Closed):
            while True:
                assert time.monotonic() < deadline, f"the connection is still open after {wait_s} s"
                self.receive(0.2)
        return bytes(self.buffer)


def whole_chunks(octets, start):
    """Returns the data of a whole chunked body without trailers and the index of its end, or None."""
    data = bytearray()
    while (line := octets.find(b"\r\n", start)) >= 0:
        size = int(octets[start:line], 16)
        start = line + 2 + size + 2
        if len(octets) < start:
            return None
        assert octets[start - 2 : start] == b"\r\n", "a chunk is longer than it says"
        if size == 0:
            return bytes(data), start
        data += octets[line + 2 : start - 2]
    return None
