"""Requests over HTTP/1.1 whose end is ambiguous, or that hide another request."""

import http1
import misuse
import wire
from arena import size
from http1 import ADD_ITEM, add_item, how
from wire1 import chunk, chunked, request

# The visible requests add one stone each; a hidden one, if it is served, adds this many.
HIDDEN = 50
CHUNKED = "transfer-encoding: chunked"
END = b"0\r\n\r\n"


def add(framing, body, **more):
    """Returns a request that adds one stone if `body` is one of `add_item`, however it is framed."""
    return request(ADD_ITEM, body, framing=framing, **more)


def in_chunks(octets):
    """Returns a request with this chunked body."""
    return add([CHUNKED], octets)


def lengths(body):
    """Content lengths of which none is a number of digits, or that disagree."""
    length = len(body)
    hidden = length + len(hide())
    values = [f"+{length}", f"-{length}", hex(length), f"{length}.0", f"{length}, {hidden}", f"{length} {length}"]
    values += ["", f"{length}\v", f"1{length:020}", f"{length};", f"{length}\0"]
    yield from [[f"content-length: {value}"] for value in values]
    yield [f"content-length: {length}", f"content-length: {hidden}"]
    yield [f"content-length: {hidden}", f"content-length: {length}"]
    yield [f"content-length : {length}"]
    yield [f"content-length\t: {length}"]
    yield ["x-folded: a", f" content-length: {length}", f"content-length: {length}"]
    yield ["content-length:", f" {length}"]


def encodings():
    """Transfer codings of which the last is not `chunked`."""
    values = ["identity", "chunked, identity", "xchunked", "chunkedx", "chunked\v", '"chunked"', "chunked;q=1", "[chunked]", "", "gzip"]
    values.append("chunked gzip")
    yield from [[f"transfer-encoding: {value}"] for value in values]
    yield ["transfer-encoding: chunked", "transfer-encoding: identity"]
    yield ["transfer-encoding : chunked"]
    yield ["transfer-encoding:", " chunked"]
    yield ["x-folded: a", " transfer-encoding: chunked", "transfer-encoding: chunked"]
    yield ["\ntransfer-encoding: chunked"]


def bad_chunks(body):
    """Chunked bodies of which no part is a message."""
    length = b"%x" % len(body)
    lines = [b"", b"g", b"-1", b"f" * 17, b"1" + b"0" * 16]
    lines += [b"+" + length, b"0x" + length, b" " + length, length + b" 0", length + b",", length + b"\0"]
    for line in lines:
        yield line + b"\r\n" + body + b"\r\n" + END
    yield length + b"\n" + body + b"\r\n" + END
    yield length + b"\r" + body + b"\r\n" + END
    yield length + b"\r\n" + body + END
    yield length + b"\r\n" + body + b"\n" + END
    yield length + b"\r\n" + body + b"more\r\n" + END
    yield length + b";a\n\r\n" + body + b"\r\n" + END
    yield length + b';a="\r\n"\r\n' + body + b"\r\n" + END
    yield chunk(body) + b"0\n\n"
    yield chunk(body) + b"0\r\n" + hide()


def hide():
    return request(ADD_ITEM, add_item(HIDDEN))


def shapes():
    """Yields the shapes as (name, octets, outcome): `refused`, and the connection is closed; `malformed`, refused as a body that cannot
    be read; `either` refused or served; or `rejected` with a clear status, after which the connection may serve other requests."""
    body = add_item()
    hidden = len(hide())
    for framing in lengths(body):
        yield f"{framing}", add(framing, body) + hide(), "refused"
    for framing in encodings():
        yield f"{framing}", add(framing, chunked(body)) + hide(), "refused"
        with_length = [*framing, f"content-length: {len(body)}"]
        yield f"{with_length}", add(with_length, body) + hide(), "refused"
    for octets in bad_chunks(body):
        yield f"chunks {octets[:10]!r} ... {octets[-12:]!r}", in_chunks(octets), "malformed"
    both = [f"content-length: {len(chunked(body)) + hidden}", CHUNKED]
    yield "length over a chunked body", add(both, chunked(add_item())) + hide(), "either"
    yield "the same, the other way", add(both[::-1], chunked(add_item())) + hide(), "either"
    yield "length shorter than the chunks", add(["content-length: 4", CHUNKED], chunked(add_item())), "either"
    yield "a length twice", add([f"content-length: {len(body)}"] * 2, add_item()), "either"
    for value in ("identity, chunked", "chunked, chunked", "gzip, chunked", ", chunked", "CHUNKED", "\tchunked "):
        yield f"transfer-encoding: {value!r}", add([f"transfer-encoding: {value}"], chunked(add_item())), "either"
    yield "chunked in HTTP/1.0", add([CHUNKED], chunked(body), version="HTTP/1.0"), "refused"
    yield "lines end in LF", request(ADD_ITEM, add_item()).replace(b"\r\n", b"\n"), "either"
    yield "lines end in CR", request(ADD_ITEM, body).replace(b"\r\n", b"\r") + b"\r\n\r\n", "refused"
    headers = {"CR": "x: a\rb", "CR and a header": "x: a\rcontent-length: 0", "NUL": "x: \0", "no colon": "x", "no name": ": x"}
    for name, header in headers.items():
        yield f"header with {name}", request(ADD_ITEM, body, headers=[header]), "refused"
    yield "path with a space", request(f"{ADD_ITEM} x", body), "refused"
    yield "path with LF", request(f"{ADD_ITEM}\nx: y", body), "refused"
    for version in ("HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/1.1x", "http/1.1", "HTTP/11", ""):
        yield f"version {version!r}", request(ADD_ITEM, body, version=version), "refused"
    yield "chunk size of many digits", in_chunks(b"0" * 30 + chunk(add_item()) + END), "either"
    yield "trailers like framing", in_chunks(chunk(add_item()) + b"0\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n"), "either"
    yield "request in a body", request(ADD_ITEM, hide()), "rejected"
    yield "request in a chunked body", in_chunks(chunked(hide())), "rejected"
    for method in ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE", "PURGE"):
        yield f"request in a body of {method}", request(ADD_ITEM, hide(), method=method), "rejected"
    yield "request in a body of text", request(ADD_ITEM, hide(), "text/plain"), "rejected"
    upgrade = ["connection: upgrade", "upgrade: h2c", "http2-settings: AAA"]
    yield "request in a body of an upgrade", request(ADD_ITEM, hide(), headers=upgrade, method="GET"), "rejected"
    yield "HTTP/2 after an upgrade", request("/", headers=upgrade, method="GET") + wire.PREFACE, "rejected"
    expectation = request("/", headers=["expect: 100-continue"], framing=[f"content-length: {hidden}"], method="GET")
    yield "request after an expectation", expectation + hide(), "rejected"


def smuggling(arena):
    """HTTP/1.1 smuggling: ambiguous and malformed framing is refused or served once, and no reply is for a hidden request"""
    results, wrong, stones = {}, [], http1.prepare(arena)
    for number, (name, octets, outcome) in enumerate(shapes()):
        reply, after = exchange(arena, octets, f"probe-{number}")
        before, stones = stones, misuse.stones(arena)
        added = stones - before
        end = f"{how(reply)}{', open' if after else ''}"
        is_served = reply is not None and reply.status == 200
        is_clear = reply is None or 400 <= reply.status < 500 or reply.status in (501, 505)
        accepted = {
            "refused": not is_served and is_clear and not after,
            "malformed": end == "400 invalid_argument" and b"the request body cannot be read" in reply.body,
            "either": is_served or is_clear and not after,
            "rejected": not is_served and is_clear,
        }
        results[end] = results.get(end, 0) + 1
        if not accepted[outcome] or added != is_served:
            wrong.append(f"{name}: must be {outcome}, but was {end}, {added} added")
    assert not wrong, f"{len(wrong)} shapes: " + "; ".join(wrong)
    return "; ".join(f"{count} {end}" for end, count in sorted(results.items(), key=lambda end: -end[1]))


def exchange(arena, octets, probe):
    """Sends octets and then a request for an inventory that does not exist. Returns the reply to the octets, or None, and whether
    the other request was served too. Asserts that no other reply arrives."""
    reply = None
    with http1.connect(arena) as connection:
        try:
            connection.send(octets)
            reply = connection.reply(octets.split(b" ", 1)[0].decode())
            connection.send(request(http1.GET_INVENTORY, http1.get_inventory(probe), headers=["connection: close"]))
            after = connection.reply()
        except wire.Closed:
            return reply, False
        if after.status == 400 and after.headers.get("connection") == "close" and not after.body:
            # Octets that were not a request.
            return reply, False
        assert f'"{probe}"'.encode() in after.body, f"a reply to a request that was not sent, after {octets[:300]!r}: {after}"
        assert not connection.rest(), f"more replies than requests, after {octets[:300]!r}"
        return reply, True


smuggling.rounds = size(1, 2)
ATTACKS = [smuggling]
