"""Bodies of Connect and gRPC-Web that expand, or that are not valid JSON, gzip or base64."""

import base64
import gzip
import json
import threading

import http1
import misuse
import wire
from arena import LARGE, MIB, module, size
from excess import INTERNAL, INVALID_ARGUMENT, OUT_OF_RANGE, RESOURCE_EXHAUSTED, UNIMPLEMENTED
from http1 import ADD_ITEM, SERVICE, SUBSCRIBE, add_item, ask, how
from test_stream import uuid7
from wire1 import request

TRANSACT = f"{SERVICE}/Transact"
GZIP = ["content-encoding: gzip"]
CONTENT_TYPES = {"proto": "application/grpc-web+proto", "text": "application/grpc-web-text"}
BOMB_BYTES = size(16, 64) * MIB
# Memory that a message may take while it is read, for each of its bytes and in addition to what any request takes.
BYTES_EACH_MAX = 16
# Maximum number of entries in all lists of a request as JSON.
ENTRIES_MAX = 16_384
# An error repeats at most 512 bytes of a request; in Connect, in its message and in its details.
REPLY_BYTES_MAX = 4_096
TWICE = b"occurs twice"
# How calls may end that are not served.
REFUSED = {"400", "409 aborted", "415", "429 resource_exhausted", "501 unimplemented"}
REFUSED |= {f"{status} {code}" for status in (200, 400) for code in ("invalid_argument", "out_of_range")}
REFUSED |= {"200 resource_exhausted", "200 unimplemented"}
REFUSED |= {f"200 grpc-status {code}" for code in (INVALID_ARGUMENT, RESOURCE_EXHAUSTED, OUT_OF_RANGE, UNIMPLEMENTED)}
# tonic and tonic-web, which read gRPC-Web, report messages that are cut and base64 that is not valid as INTERNAL.
REFUSED.add(f"200 grpc-status {INTERNAL}")


def repeated(before, entry, after, count):
    """Returns a message of about `count` bytes that has an entry very often."""
    return before + b",".join([entry] * (count // (len(entry) + 1))) + after


def connect_stream(message, flags=0, encoding="gzip"):
    headers = [f"connect-content-encoding: {encoding}"] if encoding else []
    return request(SUBSCRIBE, wire.message(message, flags), "application/connect+json", headers=headers)


def bombs(arena):
    """gzip bombs and wide JSON: refused, and the memory is at most a small multiple of the largest message"""
    stones, results, wrong = http1.prepare(arena), [], []
    zeros, spaces = (gzip.compress(octet * BOMB_BYTES, 1) for octet in (b"\0", b" "))
    count = size(MIB, 4 * MIB - 100)
    wide = repeated(b'{"operations":[', b"{}", b"]}", count)
    most = repeated(b'{"operations":[', b"{}", b"]}", 3 * ENTRIES_MAX)
    operations = b"\x12\x00" * (count // 2)
    guards = module("slotcast.v1.mutations_pb2").AddItemRequest()
    guards.context.ParseFromString(operations)
    fields = b"{" + b",".join(b'"%x":0' % number for number in range(count // 10)) + b"}"
    cases = [
        ("zeros", request(ADD_ITEM, zeros, headers=GZIP)),
        ("zeros, Protobuf", request(ADD_ITEM, zeros, "application/proto", headers=GZIP)),
        ("gzip in gzip", request(ADD_ITEM, gzip.compress(zeros), headers=GZIP)),
        ("spaces", request(ADD_ITEM, spaces, headers=GZIP)),
        ("stream, zeros", connect_stream(zeros, flags=1)),
        ("stream, spaces", connect_stream(spaces, flags=1)),
        ("operations {}", request(TRANSACT, wide)),
        ("operations {}, gzip", request(TRANSACT, gzip.compress(wide), headers=GZIP)),
        ("16,384 operations", request(TRANSACT, most)),
        ("operations, Protobuf", request(TRANSACT, operations, "application/proto")),
        ("guards, Protobuf", request(ADD_ITEM, guards.SerializeToString(), "application/proto")),
        ("lists in lists", request(TRANSACT, repeated(b'{"operations":[', repeated(b"[", b"{}", b"]", 300), b"]}", count))),
        ("fields", request(TRANSACT, fields)),
        ("inventories {}", connect_stream(repeated(b'{"inventories":[', b"{}", b"]}", count), encoding=None)),
    ]
    if LARGE:
        cases += [
            ("operations with an add", request(TRANSACT, repeated(b'{"operations":[', b'{"add":{"stack":{}}}', b"]}", count))),
            ("operations null", request(TRANSACT, repeated(b'{"operations":[', b"null", b"]}", count))),
            ("guards {}", request(TRANSACT, repeated(b'{"context":{"expected":[', b"{}", b"]}}", count))),
        ]
    for name, octets in cases:
        reply, grown = measure(arena, lambda octets=octets: ask(arena, octets, 20))
        is_clear = reply is not None and (reply.status in (400, 413, 429) or b'"error"' in reply.body)
        results.append(f"{name}: {how(reply)}, {grown / MIB:.0f} MiB")
        if not is_clear or grown > 16 * MIB + BYTES_EACH_MAX * count:
            wrong.append(f"{results[-1]} more for {len(octets):,} bytes")
    assert misuse.stones(arena) == stones, "something has changed"
    assert not wrong, "; ".join(wrong)
    return "; ".join(results)


def measure(arena, work):
    """Returns the result of `work()`, and how much memory the server needed during it."""
    result, before, peak = [], arena.server.rss(), 0
    worker = threading.Thread(target=lambda: result.append(work()))
    worker.start()
    while worker.is_alive():
        peak = max(peak, arena.server.rss())
        worker.join(0.002)
    return result[0], peak - before


def json_cases():
    """Returns JSON for AddItem as (name, octets, whether it is served). Instead of False, that is a part of the error's text; it is
    None if either is right."""

    def with_stack(stack, context="", more=""):
        context = f'{{"idempotencyKey":"{uuid7()}"{context}}}'
        text = f'{{"context":{context},"add":{{"inventoryId":"misused","stack":{stack}}}{more}}}'
        return text.encode("utf-8", "surrogatepass")

    stack = '{"item":"stone","count":1}'
    valid = with_stack(stack).decode()
    guard = '"expected":[{"inventoryId":"misused","epoch":1,"revision":"1"}]'
    long_text = "u" * MIB
    for count in ('"1"', "1.0", "1e0", "1.00"):
        yield f"count {count}", with_stack('{"item":"stone","count":%s}' % count), True
    numbers = '1.5 -1 true [1] {} "" "0x1" 4294967297 18446744073709551617 1e400 1e999999999 NaN "NaN" Infinity 01 +1 0x1 1e-400 null'
    for count in [*numbers.split(), '" 1"', "1" * 10_000]:
        yield f"count {count[:25]}", with_stack('{"item":"stone","count":%s}' % count), False
    texts = r'"\ud800" "\udc00\ud800" "stone\u0000" "stone "\x41" "\u12" 1 null {} []'
    for item in [*texts.split(), '"stone\0"', '"\ud800"', '"\ud83d"']:
        yield f"item {item!r}", with_stack('{"item":%s,"count":1}' % item), False
    yield "escaped letters", with_stack(r'{"item":"sto\u006ee","count":1}'), True
    yield "bad base64", with_stack('{"item":"stone","count":1,"attributes":"?"}'), False
    yield "long unknown field", b'{"' + long_text.encode() + b'":1}', False
    yield "long wrong type", json.dumps({"add": long_text}).encode(), False
    yield "long number", b'{"add":' + b"1" * MIB + b"}", False
    yield "long key", add_item().replace(b'"idempotencyKey": "', b'"idempotencyKey": "' + long_text.encode()), False
    yield "long item", add_item(item=long_text), False
    nested = {"lists": b"[", "objects": b'{"a":', "guards": b'{"context":{"expected":[', "stacks": b'{"add":{"stack":'}
    for name, opening in nested.items():
        yield f"deep {name}", (opening * MIB)[:MIB], False
    yield "deep in a value", with_stack('{"item":%s' % ("[" * MIB)), False
    others = {"trailing letters": valid + "x", "two messages": valid * 2, "comment": "/**/" + valid, "comma": valid[:-1] + ",}"}
    others |= {"list": f"[{valid}]", "text": json.dumps(valid), "null": "null", "nothing": "", "byte order mark": "\ufeff" + valid}
    others |= {"unknown field": valid[:-1] + ',"__proto__":{}}', "cut": valid[:-2], "quotes": valid.replace('"', "'")}
    for name, text in others.items():
        yield name, text.encode(), False
    yield "UTF-16", valid.encode("utf-16"), False
    yield "Latin-1", with_stack('{"item":"st\u00f6ne","count":1}').decode().encode("latin-1"), False
    yield "count twice", with_stack('{"item":"stone","count":2,"count":1}'), TWICE
    yield "count twice, escaped", with_stack('{"item":"stone","count":1,"c\\u006funt":1}'), TWICE
    yield "count, then null", with_stack('{"item":"stone","count":1,"count":null}'), TWICE
    yield "two spellings", with_stack('{"itemCode":10,"item_code":10,"count":1}'), TWICE
    yield "spelled otherwise", with_stack('{"item_code":10,"itemCode":10,"count":1}'), TWICE
    yield "add twice", with_stack(stack, more=f',"add":{{"inventoryId":"misused","stack":{stack}}}'), TWICE
    # A guard that is ignored would be dangerous.
    yield "guard", with_stack(stack, f",{guard}"), False
    yield "guards, then none", with_stack(stack, f',{guard},"expected":[]'), TWICE
    yield "guards, then null", with_stack(stack, f',{guard},"expected":null'), TWICE
    yield "none, then guards", with_stack(stack, f',"expected":[],{guard}'), TWICE
    yield "guards, then another context", b'{"context":{' + guard.encode() + b"}," + with_stack(stack)[1:], TWICE
    yield "too many guards", with_stack(stack, ',"expected":[%s]' % ",".join(["{}"] * (ENTRIES_MAX + 1))), b"16384 entries"


def other_cases():
    """Returns requests that are not valid gzip, Connect or gRPC-Web, as `json_cases` does but with whole requests."""
    whole = gzip.compress(add_item())
    yield "not gzip", request(ADD_ITEM, add_item(), headers=GZIP), False
    yield "gzip cut", request(ADD_ITEM, whole[:-9], headers=GZIP), False
    yield "gzip with a wrong sum", request(ADD_ITEM, whole[:-8] + bytes(8), headers=GZIP), False
    yield "gzip and more", request(ADD_ITEM, gzip.compress(add_item()) + b"more", headers=GZIP), None
    yield "two gzips", request(ADD_ITEM, gzip.compress(add_item()) + gzip.compress(b" "), headers=GZIP), None
    for encoding in ("gzip", "GZIP", "GZip"):
        body = gzip.compress(add_item())
        yield f"encoding {encoding}", request(ADD_ITEM, body, headers=[f"content-encoding: {encoding}"]), True
    yield "encoding Identity", request(ADD_ITEM, add_item(), headers=["content-encoding: Identity"]), True
    for version in ("2", "0", "1.0", "01", "", "1, 1", "one", "\xff"):
        headers, text = [f"connect-protocol-version: {version}"], b"connect-protocol-version"
        yield f"version {version!r}", request(ADD_ITEM, add_item(), headers=headers), text
    yield "version 1", request(ADD_ITEM, add_item(), headers=["connect-protocol-version: 1"]), True
    for encoding in ("br", "gzip, gzip", "zstd", "\xff"):
        yield f"encoding {encoding!r}", request(ADD_ITEM, whole, headers=[f"content-encoding: {encoding}"]), False
    for timeout in ("soon", "-1", "1.5", "1e3", "", "99999999999", "0x10"):
        yield f"timeout {timeout!r}", request(ADD_ITEM, add_item(), headers=[f"connect-timeout-ms: {timeout}"]), False
    for kind in ("json; charset=utf-16", "jsonx", "connect+json", "connect+proto", "proto"):
        yield kind, request(ADD_ITEM, add_item(), f"application/{kind}"), False
    watch = b'{"inventories":[{"inventoryId":"victims-chest"}]}'
    yield "stream without a prefix", request(SUBSCRIBE, watch, "application/connect+json"), False
    yield "stream with the type of a call", request(SUBSCRIBE, wire.message(watch)), False
    streams = {"empty": b"", "prefix cut": bytes(3), "message cut": wire.message(watch)[:-3], "two messages": wire.message(watch) * 2}
    streams |= {f"flags {flags}": wire.message(watch, flags) for flags in (1, 2, 4, 128)}
    streams["4 GiB"] = wire.message(watch, size=0xFFFF_FFFF)
    for name, octets in streams.items():
        yield f"stream, {name}", request(SUBSCRIBE, octets, "application/connect+json"), False


def grpc_web_cases(arena):
    """Returns requests of gRPC-Web, as `other_cases` does."""

    def message():
        return wire.message(misuse.add_one(arena, uuid7()))

    def text():
        return base64.b64encode(message())

    binary = {"empty": b"", "prefix cut": bytes(3), "message cut": message()[:-3], "4 GiB": wire.message(b"", size=0xFFFF_FFFF)}
    binary |= {f"flag {flag}": bytes([flag]) + message()[1:] for flag in (1, 2, 127)}
    binary |= {"only trailers": wire.message(b"a: b\r\n", 128), "no message": wire.message(misuse.NO_MESSAGE)}
    texts = {"other letters": b"!!!!", "3 letters": b"AAA", "1 letter": b"A", "padding": b"====", "NUL": bytes(8), "binary": message()}
    texts |= {"cut": text()[:-1], "cut by 4": text()[:-4], "prefix": base64.b64encode(message()[:5])}
    texts["other alphabet"] = base64.urlsafe_b64encode(wire.message(b"\xff" * 27))
    either = {"two messages": message() * 2, "message and trailers": message() + wire.message(b"a: b\r\n", 128)}
    either_text = {"line ends": base64.encodebytes(message()), "two texts": b" ".join([text()] * 2), "letters after it": text() + b"!!!!"}
    for kind, cases, served in [("proto", binary, False), ("proto", either, None), ("text", texts, False), ("text", either_text, None)]:
        for name, octets in cases.items():
            yield f"gRPC-Web {kind}, {name}", request(ADD_ITEM, octets, CONTENT_TYPES[kind]), served


def malformed_bodies(arena):
    """malformed JSON, gzip and base64: nested, duplicate, of wrong types or cut: a short and clear status, and nothing changes"""
    stones, wrong, results = http1.prepare(arena), [], {}
    cases = [(name, request(ADD_ITEM, octets), served) for name, octets, served in json_cases()]
    for name, octets, served in [*cases, *other_cases(), *grpc_web_cases(arena)]:
        reply = ask(arena, octets)
        end = how(reply)
        results[end] = results.get(end, 0) + 1
        before, stones = stones, misuse.stones(arena)
        added = stones - before
        is_served, text = end in ("200", "200 grpc-status 0"), b""
        if isinstance(served, bytes):
            served, text = False, served
        if is_served != served and served is not None or not is_served and end not in REFUSED or added != is_served:
            wrong.append(f"{name}: {end}, {added} added")
        elif text and not (text in reply.body and b"MALFORMED" in reply.body):
            wrong.append(f"{name}: the error does not have {text}: {reply.body[:300]}")
        if reply and len(reply.body) > REPLY_BYTES_MAX:
            wrong.append(f"{name}: a reply of {len(reply.body):,} bytes")
    assert not wrong, f"{len(wrong)} wrong: " + "; ".join(wrong)
    return "; ".join(f"{count} {end}" for end, count in sorted(results.items(), key=lambda end: -end[1]))


bombs.rounds = malformed_bodies.rounds = size(1, 2)
ATTACKS = [bombs, malformed_bodies]
