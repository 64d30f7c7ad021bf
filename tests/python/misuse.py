"""Calls that are not valid gRPC, or not of this service: each gets a clear reply and changes nothing."""

import contextlib
import os
import random
import struct
import time

from google.protobuf import descriptor_pb2, message_factory

import wire
from arena import module, size
from excess import INTERNAL, INVALID_ARGUMENT, OK, UNIMPLEMENTED, UNKNOWN, VICTIMS
from floods import GET_INVENTORY, SUBSCRIBE

ADD_ITEM = "/slotcast.v1.InventoryService/AddItem"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
# Input that is read as HTTP/1.1, and the status of the reply: a request that is not POST, and what is not a request.
READ_AS_HTTP1 = {"HTTP/1.1": b"405", "TLS": b"400", "noise": b"400"}
# A field with the number 0: never a message.
NO_MESSAGE = b"\x00"


def field(number, octets):
    """Encodes a length-delimited protobuf field."""
    return wire.number(number << 3 | 2, 8) + varint(len(octets)) + octets


def varint(value):
    octets = bytearray()
    while value >= 128:
        octets.append(value & 127 | 128)
        value >>= 7
    return bytes([*octets, value])


def fields(octets):
    """Returns the length-delimited fields as (number, value)."""
    at = 0

    def take():
        nonlocal at
        value = shift = 0
        while True:
            octet, at = octets[at], at + 1
            value, shift = value | (octet & 127) << shift, shift + 7
            if octet < 128:
                return value

    while at < len(octets):
        key = take()
        value = take()
        if key & 7 == 2:
            yield key >> 3, octets[at : at + value]
            at += value


def reflected_methods(arena):
    """Returns all methods from the server's reflection: (path, whether the reply is a stream)."""

    def ask(question):
        with arena.connect() as connection:
            stream = connection.call(wire.call_headers(REFLECTION), wire.message(question))
            assert stream.status == OK, stream.summary()
            return dict(fields(wire.messages(bytes(stream.data))[0]))

    services = [name for _, service in fields(ask(b"\x3a\x00")[6]) for number, name in fields(service) if number == 1]
    methods = []
    for name in services:
        for _, encoded in fields(ask(field(4, name))[4]):
            file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
            for service in file.service:
                full = f"{file.package}.{service.name}"
                methods += [(f"/{full}/{m.name}", m.server_streaming) for m in service.method if full == name.decode()]
    assert any(path == GET_INVENTORY for path, _ in methods), methods
    return methods


def state(arena):
    """Returns the state that the calls could change: all inventories except the victims', and the rollout."""
    with arena.connect() as connection:
        found = []
        for path, body in [("InventoryService/ListInventories", b"\x18\x64"), ("AdminService/GetRollout", b"")]:
            stream = connection.call(wire.call_headers(f"/slotcast.v1.{path}"), wire.message(body))
            assert stream.status == OK, stream.summary()
            found.append(wire.messages(bytes(stream.data))[0])
    summaries = [value for number, value in fields(found[0]) if number == 1 and b"victims-chest" not in value]
    return summaries, found[1]


def add_one(arena, key):
    """Sends a valid AddItem to an inventory, which it creates first if necessary."""
    pb = module("slotcast.v1.mutations_pb2")
    stack = module("slotcast.v1.inventory_pb2").Stack(item="stone", count=1)
    create = pb.CreateInventory(inventory_id="misused", layout="chest")
    made = pb.CreateInventoryRequest(context=pb.MutationContext(idempotency_key="make"), create=create)
    with arena.connect() as connection:
        path = "/slotcast.v1.InventoryService/CreateInventory"
        connection.call(wire.call_headers(path), wire.message(made.SerializeToString()))
    context = pb.MutationContext(idempotency_key=key)
    add = pb.AddItem(inventory_id="misused", stack=stack)
    return pb.AddItemRequest(context=context, add=add).SerializeToString()


def stones(arena):
    """Returns the number of stones in the inventory of `add_one`."""
    service = module("slotcast.v1.service_pb2")
    request = service.GetInventoryRequest(inventory_id="misused").SerializeToString()
    with arena.connect() as connection:
        stream = connection.call(wire.call_headers(GET_INVENTORY), wire.message(request))
    assert stream.status == OK, stream.summary()
    inventory = service.GetInventoryResponse.FromString(wire.messages(bytes(stream.data))[0]).inventory
    return sum(entry.stack.count for entry in inventory.stacks)


def malformed_calls(arena):
    """malformed calls: bad paths, truncated messages and flags get a clear reply and change nothing"""
    valid = wire.message(add_one(arena, f"once-{time.monotonic_ns()}"))
    before, results = state(arena), []
    # Header block, body, and the acceptable statuses of gRPC or HTTP.
    headers, grpc_errors = wire.call_headers, set(range(1, 17))
    compressed = wire.message(valid[5:], compressed=1)
    cases = [
        ("unknown method", headers("/slotcast.v1.InventoryService/Steal"), valid, {UNIMPLEMENTED}),
        ("unknown service", headers("/slotcast.v9.InventoryService/AddItem"), valid, {UNIMPLEMENTED}),
        ("path of nothing", headers("/"), valid, {UNIMPLEMENTED}),
        ("path of 4 KB", headers("/" + "a" * 4_000), valid, {UNIMPLEMENTED}),
        ("path with ..", headers("/slotcast.v1.InventoryService/../AdminService/Drain"), valid, {UNIMPLEMENTED}),
        ("path upwards", headers("//slotcast.v1.InventoryService/AddItem"), valid, {UNIMPLEMENTED}),
        ("message cut", headers(ADD_ITEM), valid[:-3], {INTERNAL, INVALID_ARGUMENT}),
        ("prefix cut", headers(ADD_ITEM), valid[:3], {INTERNAL, INVALID_ARGUMENT}),
        ("no message", headers(ADD_ITEM), b"", {INTERNAL, INVALID_ARGUMENT, UNIMPLEMENTED}),
        ("flag without encoding", headers(ADD_ITEM), compressed, {INTERNAL, INVALID_ARGUMENT, UNIMPLEMENTED}),
        ("flag of 7", headers(ADD_ITEM), wire.message(valid[5:], compressed=7), {INTERNAL, INVALID_ARGUMENT, UNIMPLEMENTED}),
        ("unknown encoding", headers(ADD_ITEM, [("grpc-encoding", "pied")]), compressed, {UNIMPLEMENTED, INTERNAL}),
        ("bad timeout", headers(GET_INVENTORY, [("grpc-timeout", "soon")]), VICTIMS, {OK, INTERNAL, INVALID_ARGUMENT}),
        ("bad caller", headers(ADD_ITEM, [("slotcast-caller", b"\xff\xfe")]), valid, grpc_errors),
        ("long caller", headers(ADD_ITEM, [("slotcast-caller", "c" * 1_000)]), valid, grpc_errors),
        ("empty player", headers(SUBSCRIBE, [("slotcast-player", "")]), VICTIMS, grpc_errors),
    ]
    for name, block, body, clear in cases:
        with arena.connect() as connection:
            stream = connection.call(block, body)
            end = stream.http if stream.status is None else stream.status
            if end not in clear:
                raise AssertionError(f"{name}: {stream.summary()} {connection.closed or ''}")
            results.append(f"{name}: {end}")
        assert state(arena) == before, f"{name} has changed something"
    return "; ".join(results)


def lenient(arena):
    """calls that gRPC forbids: another content type is rejected; without te, or with two messages, the call is applied at most once"""
    results, html = [], {"content_type": "text/html"}
    cases = [("text/html", html, 1), ("no content-type", {"content_type": None}, 1), ("no te", {"te": None}, 1), ("two messages", {}, 2)]
    for name, headers, count in cases:
        bodies = [wire.message(add_one(arena, f"{name}-{number}-{time.monotonic_ns()}")) for number in range(count)]
        before = stones(arena)
        with arena.connect() as connection:
            stream = connection.call(wire.call_headers(ADD_ITEM, **headers), b"".join(bodies))
            is_other_type = "content_type" in headers
            assert (stream.http == "415") == is_other_type, f"{name}: {stream.summary()}"
            assert is_other_type or stream.status is not None, f"{name}: {stream.summary()}"
        added = stones(arena) - before
        assert added == (1 if stream.status == OK else 0), f"{name}: {stream.summary()}, but {added} were added"
        results.append(f"{name}: {stream.summary()}")
    return "; ".join(results)


def malformed_http(arena):
    """input that is neither HTTP/1.1 nor HTTP/2, or violates it: the connection is closed or the call rejected"""
    block, results = wire.call_headers(GET_INVENTORY), []
    prologue, whole = wire.PREFACE + wire.settings(), wire.END_HEADERS | wire.END_STREAM
    cases = [
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: slotcast\r\n\r\n"),
        ("TLS", bytes.fromhex("16030100c6010000c20303") + bytes(200)),
        ("noise", random.Random(1).randbytes(1_000)),
        ("no SETTINGS first", wire.PREFACE + wire.frame(wire.HEADERS, whole, 1, block)),
        ("frame too large", prologue + struct.pack(">IBI", (1 << 24) - 1 << 8 & 0xFFFF_FF00, 0, 1) + bytes(100)),
        ("even stream", prologue + wire.frame(wire.HEADERS, whole, 2, block)),
        ("DATA before HEADERS", prologue + wire.frame(wire.DATA, 1, 5, b"abc")),
        ("window of 0", prologue + wire.window_update(0, 0)),
        ("window overflow", prologue + wire.window_update(0, (1 << 31) - 1)),
        ("bad HPACK", prologue + wire.frame(wire.HEADERS, whole, 1, b"\xff\xff\xff\xff\xff\xff")),
        ("upper-case header", prologue + wire.frame(wire.HEADERS, whole, 1, block + wire.literal("X-Upper", "v"))),
        ("two paths", prologue + wire.frame(wire.HEADERS, whole, 1, block + wire.literal(":path", "/"))),
        ("padding over the end", prologue + wire.frame(wire.HEADERS, whole | 8, 1, b"\xff" + block[:50])),
        ("SETTINGS of 5 bytes", prologue + wire.frame(wire.SETTINGS, payload=b"12345")),
        ("PUSH_PROMISE", prologue + wire.frame(5, 4, 1, b"\0\0\0\2" + block)),
        ("PING on a stream", prologue + wire.frame(wire.PING, stream=1, payload=b"12345678")),
    ]
    for name, octets in cases:
        with arena.connect(preface=False) as connection:
            with contextlib.suppress(wire.Closed):
                connection.send(octets)
                if name in READ_AS_HTTP1:
                    connection.socket.settimeout(5)
                    answer = connection.socket.recv(12)
                    assert answer == b"HTTP/1.1 " + READ_AS_HTTP1[name], f"{name}: {answer!r}"
                    results.append(f"{name}: {answer.decode()}")
                    continue
                refused = lambda c=connection: any(s.reset is not None or s.ended for s in c.streams.values())  # noqa: E731
                assert connection.until(refused, 5), f"{name}: no answer within 5 s"
                results.append(f"{name}: {next(iter(connection.streams.values())).summary()}")
                continue
            results.append(f"{name}: {connection.closed or 'closed'}")
    return "; ".join(results)


def fuzz(arena):
    """random octets as the message of every method: each gets a status, nothing changes or hangs"""
    chance, methods = seeded(), reflected_methods(arena)

    def octets(path):
        body = chance.randbytes(chance.choice([0, 1, 2, 5, 20, 100, 1_000]))
        # These methods may have an effect; octets that are not a message must not.
        return NO_MESSAGE + body if path.endswith(("/Drain", "/UpdateRollout")) else body

    return f"{len(methods)} methods, {send_all(arena, methods, octets, size(20, 1_000))}"


def fuzz_of_fields(arena):
    """random fields in the messages of every method: each gets a status other than INTERNAL, nothing changes or hangs"""
    chance, kinds, methods = seeded(), {}, []
    for method in module("slotcast.v1.service_pb2").DESCRIPTOR.services_by_name["InventoryService"].methods:
        # Random messages may create inventories.
        if method.name != "CreateInventory":
            path = f"/{method.containing_service.full_name}/{method.name}"
            kinds[path] = message_factory.GetMessageClass(method.input_type)
            methods.append((path, method.server_streaming))

    def octets(path):
        found = kinds[path]()
        fill(found, chance)
        return found.SerializeToString()

    return f"{len(methods)} methods, {send_all(arena, methods, octets, size(40, 2_000))}"


# Most fields are valid, so that the others are reached.
SENSIBLE = {"idempotency_key": "fuzz", "inventory_id": "nobody", "from_inventory_id": "nobody", "to_inventory_id": "somebody"}
SENSIBLE |= {"item": "stone", "recipe": "stick", "layout": "chest", "owner": "fuzz", "prefix": "no", "page_token": ""}


def fill(found, chance, depth=0):
    """Sets most fields of a message to valid or invalid values; none names an existing inventory."""
    strings = ["", "nobody", "stone", "coal", "chest", "\u00e9\U0001f512", "x" * 300, "stone\0", "../..", "nobody"]
    numbers = [*range(1, 12), 0, 26, 27, 64, 65, 1_023, (1 << 31) - 1, (1 << 32) - 1]
    for field in found.DESCRIPTOR.fields:
        many = chance.choice([0, 1, 1, 2, 5]) if field.is_repeated else 1
        if chance.random() < 0.1 or depth > 6:
            continue
        for _ in range(many):
            if field.message_type:
                nested = getattr(found, field.name)
                fill(nested.add() if field.is_repeated else nested, chance, depth + 1)
                continue
            value = {
                field.TYPE_STRING: lambda field=field: SENSIBLE.get(field.name, chance.choice(strings))
                if chance.random() < 0.8
                else chance.choice(strings),
                field.TYPE_BYTES: lambda: chance.randbytes(chance.choice([0, 1, 1_024, 1_025])),
                field.TYPE_BOOL: lambda: chance.random() < 0.5,
                field.TYPE_UINT64: lambda: chance.choice([*numbers, (1 << 64) - 1]),
            }.get(field.type, lambda: chance.choice(numbers))()
            if field.is_repeated:
                getattr(found, field.name).append(value)
            else:
                setattr(found, field.name, value)


def seeded():
    chance = random.Random()
    chance.first = int(os.environ.get("SLOTCAST_HOSTILE_SEED", random.getrandbits(32)))
    chance.seed(chance.first)
    print(f"- seed {chance.first}: again with SLOTCAST_HOSTILE_SEED={chance.first}", flush=True)
    return chance


def send_all(arena, methods, octets, each):
    """Sends a number of messages from `octets(path)` to each method, and returns how they ended. Asserts that nothing changed."""
    results = {}
    add_one(arena, "unused")
    before = state(arena)
    with arena.connect() as connection:
        for path, streams in methods:
            for _ in range(each):
                body = octets(path)
                number = connection.begin(wire.call_headers(path), wire.message(body))
                stream = connection.known(number)
                done = lambda s=stream: s.ended or s.reset is not None or (streams and s.data)  # noqa: E731
                assert connection.until(done, 5), f"{path} hangs with {body.hex()}"
                if not stream.ended:
                    connection.send(wire.reset(number))
                assert stream.status not in (UNKNOWN, INTERNAL), f"{path}: {stream.summary()} with {body.hex()}"
                assert stream.status is not None or stream.data, f"{path}: {stream.summary()} with {body.hex()}"
                results[stream.status] = results.get(stream.status, 0) + 1
                del connection.streams[number]
    assert state(arena) == before, "something has changed"
    return ", ".join(f"{count} of status {status}" for status, count in sorted(results.items(), key=lambda end: -end[1]))


ATTACKS = [malformed_calls, lenient, malformed_http, fuzz, fuzz_of_fields]
