#!/usr/bin/env python3
"""Conformance of the service with a client in another language that is written from the protos alone.

Its replica applies frames as stream.proto documents them and computes the digest with digest.py, so it shares no code with
the service. Every mutation is sent, a stream is followed, and what it ends at is compared with GetInventory.

    SLOTCAST_BIN=target/debug/slotcast tests/python/test_stream.py

Needs the packages of requirements.txt. The gRPC code is generated into a temporary folder.
"""

import contextlib
import importlib
import json
import os
import pathlib
import queue
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import grpc

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
import protos  # noqa: E402
from digest import SEED_A, digest, murmur3_x86_32  # noqa: E402
from protos import uuid7  # noqa: E402

PREFIX_BYTES = 5
WAIT_S = 5
# What google.rpc says of errors, as far as it is read here; the full files need a package of their own.
RICH_ERRORS = """
syntax = "proto3";
package google.rpc;
import "google/protobuf/any.proto";
import "google/protobuf/duration.proto";
message Status { int32 code = 1; string message = 2; repeated google.protobuf.Any details = 3; }
message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
message RetryInfo { google.protobuf.Duration retry_delay = 1; }
message BadRequest {
  message FieldViolation { string field = 1; string description = 2; }
  repeated FieldViolation field_violations = 1;
}
"""


def generate(folder):
    """The messages, the stubs, and rich errors."""
    load = protos.generate(folder, {"rich_errors.proto": RICH_ERRORS})
    return protos.messages(), load("slotcast.v1.service_pb2_grpc"), load("rich_errors_pb2")


def without_ours(environment):
    """Removes the variables of the tests, which the server would reject as unknown settings."""
    return {name: value for name, value in environment.items() if not name.startswith("SLOTCAST_")}


class Server:
    """`slotcast serve` on a free port with a data folder."""

    def __init__(self, data, *arguments, log=None, environment=None):
        listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        command = [os.environ["SLOTCAST_BIN"], "serve", *listen, "--data", str(data), *arguments]
        quiet = {**without_ours(os.environ), "SLOTCAST_LOG": "warn", **(environment or {})}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=quiet)
        ready, _, _ = select.select([self.process.stdout], [], [], WAIT_S)
        line = self.process.stdout.readline() if ready else ""
        if line.startswith("{"):
            addresses = json.loads(line)
            self.address, self.admin_address = (addresses[name].removeprefix("http://") for name in ("address", "admin_address"))
            return
        if not line.startswith(("listening on http://", "listening on https://")):
            self.kill()
            raise AssertionError(f"instead of its address the server printed {line!r}")
        self.address = line.partition("://")[2].strip()
        self.admin_address = self.process.stdout.readline().removeprefix("admin listening on http://").strip()

    def terminate(self):
        """Sends SIGTERM and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=15)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Client:
    """Sends each mutation with a new idempotency key, and records the RPCs that were called."""

    def __init__(self, address, caller, called):
        self.channel = grpc.insecure_channel(address)
        self.stub = stubs.InventoryServiceStub(self.channel)
        self.metadata = [("slotcast-caller", caller)]
        self.called = called

    def call(self, rpc, request):
        self.called.add(rpc)
        return getattr(self.stub, rpc)(request, metadata=self.metadata, timeout=WAIT_S)

    def mutate(self, rpc, key=None, session="", predicted=(), **fields):
        """Sends a mutation; `fields` is its only field besides the context."""
        context = pb.MutationContext(idempotency_key=key or uuid7(), session=session, predicted=predicted)
        return self.call(rpc, getattr(pb, f"{rpc}Request")(context=context, **fields))

    def get(self, inventory_id):
        return self.call("GetInventory", pb.GetInventoryRequest(inventory_id=inventory_id)).inventory

    def close(self):
        self.channel.close()


class Replica:
    """The replica of one inventory."""

    def __init__(self):
        self.epoch = self.revision = self.size = None
        # The revision that the stream has brought it to; predictions may be ahead of it.
        self.last_sent = None
        self.slots = {}

    def apply(self, change):
        """Applies a change as stream.proto defines it for InventoryChange. Returns its kind."""
        kind = "absent" if change.absent else "full" if change.HasField("full") else "delta"
        if kind == "absent":
            self.__init__()
            return kind
        if kind == "full":
            self.epoch, self.revision, self.size = change.full.epoch, change.full.revision, change.full.slots
            self.slots = {}
        else:
            assert self.last_sent is not None, "a delta came before any full state"
            base = self.last_sent + change.skipped
            assert base <= self.revision <= base + change.advance, "the base is not what the reader has"
            self.revision = base + change.advance
        self.last_sent = self.revision
        assert len(change.slots) == len(change.counts) >= len(change.items)
        kept = len(change.slots) - len(change.items)
        for index, (slot, count) in enumerate(zip(change.slots, change.counts)):
            assert slot < self.size, f"slot {slot} of {self.size}"
            if index >= kept:
                assert count > 0, "filled anew with nothing"
                self.slots[slot] = (change.items[index - kept], count, b"")
            elif count == 0:
                self.slots.pop(slot, None)
            else:
                item, _, attributes = self.slots[slot]
                self.slots[slot] = (item, count, attributes)
        assert len(change.attribute_slots) == len(change.attributes)
        for slot, attributes in zip(change.attribute_slots, change.attributes):
            item, count, _ = self.slots[slot]
            self.slots[slot] = (item, count, attributes)
        have = self.digest()["folded"]
        assert have == change.check, f"DESYNC: the digest should be {change.check:08x} and is {have:08x}"
        return kind

    def predict(self, changed):
        """Applies a predicted change and returns the expected digest."""
        self.slots |= changed
        self.revision += 1
        mine = self.digest()
        return pb.Digest(a=mine["a"], b=mine["b"])

    def digest(self):
        return digest(
            {"slot": slot, "item_code": item, "count": count, "attributes_hex": attributes.hex()}
            for slot, (item, count, attributes) in self.slots.items()
        )

    def is_at(self, inventory):
        """Returns whether the replica equals an inventory from GetInventory."""
        version = inventory.version
        if (self.epoch, self.revision) != (version.epoch, version.revision):
            return False
        held = {s.slot: (s.stack.item_code, s.stack.count, s.stack.attributes) for s in inventory.stacks}
        mine = self.digest()
        assert (mine["a"], mine["b"]) == (version.digest.a, version.digest.b), "DESYNC: same revision, other digest"
        assert self.slots == held and self.size == inventory.slots, "DESYNC: same digest, other content"
        return True


class Follower:
    """A subscription that a thread reads; `take` applies the messages."""

    def __init__(self, client, ids, cursors=None, replicas=None, session=""):
        client.called.add("SubscribeInventory")
        self.client, self.ids = client, ids
        self.replicas = replicas or [Replica() for _ in ids]
        self.sizes, self.error = [], None
        self.messages = queue.Queue()
        watches = [pb.Watch(inventory_id=name) for name in ids]
        for watch, cursor in zip(watches, cursors or []):
            watch.resume.epoch, watch.resume.revision = cursor
        # The bytes as they came, not as Python would write them.
        self.stream = client.channel.unary_stream(
            "/slotcast.v1.InventoryService/SubscribeInventory",
            request_serializer=pb.SubscribeInventoryRequest.SerializeToString,
            response_deserializer=lambda raw: (len(raw), pb.SubscribeInventoryResponse.FromString(raw)),
        )(pb.SubscribeInventoryRequest(inventories=watches, session=session), metadata=client.metadata)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            for message in self.stream:
                self.messages.put(message)
        except grpc.RpcError as error:
            self.error = error
        self.messages.put(None)

    def take(self, wait_s=WAIT_S):
        """Applies and returns the next message, or None at the end of the stream."""
        taken = self.messages.get(timeout=wait_s)
        if taken is None:
            return None
        size, message = taken
        self.sizes.append(size + PREFIX_BYTES)
        for change in message.changes:
            self.replicas[change.watch].apply(change)
        for mark in message.marks:
            replica = self.replicas[mark.watch]
            mine = replica.digest()
            state = (replica.epoch, replica.revision, mine["a"], mine["b"])
            assert state == (mark.epoch, mark.revision, mark.digest.a, mark.digest.b), "DESYNC: not at the heartbeat's"
        return message

    def caught_up(self):
        """Takes messages until the caught-up mark and returns their changes."""
        changes = []
        while True:
            message = self.take()
            changes.extend(message.changes)
            if message.caught_up:
                return changes

    def converge(self, each=lambda: None):
        """Takes messages until all replicas equal GetInventory; calls `each` after every message."""
        wanted = [self.client.get(name) for name in self.ids]
        while not all(replica.is_at(inventory) for replica, inventory in zip(self.replicas, wanted)):
            assert self.take() is not None, f"the stream ended: {self.error}"
            each()

    def cursors(self):
        return [(replica.epoch, replica.revision) for replica in self.replicas]

    def cancel(self):
        self.stream.cancel()


@contextlib.contextmanager
def refused(code, reason, **metadata):
    """Asserts that the call inside fails with a code and a google.rpc.ErrorInfo."""
    try:
        yield
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()} instead of {code}: {error.details()}"
        check_error_info(detail(error, "ErrorInfo"), reason, metadata)
    else:
        raise AssertionError(f"it was not refused with {reason}")


def check_error_info(info, reason, metadata):
    """Asserts that a google.rpc.ErrorInfo has a reason and at least this metadata."""
    assert (info.domain, info.reason) == ("slotcast", reason), f"expected {reason}, got {info.domain}/{info.reason}"
    have = {name: info.metadata.get(name) for name in metadata}
    assert have == metadata, f"expected the metadata {metadata}, got {dict(info.metadata)}"


def detail(error, name):
    """Returns a detail of an error from the standard trailer of gRPC."""
    trailers = {key: value for key, value in error.trailing_metadata()}
    status = rich.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0] and status.message == error.details()
    found = getattr(rich, name)()
    unpacked = [packed for packed in status.details if packed.Unpack(found)]
    assert len(unpacked) == 1, f"{len(unpacked)} {name} in {[packed.type_url for packed in status.details]}"
    return found


class World:
    """A server, a client, and the catalog, which all checks share."""

    def __init__(self, data):
        self.data, self.called = data, set()
        self.server = Server(data)
        self.client = Client(self.server.address, "judge", self.called)
        self.catalog = self.client.call("GetCatalog", pb.GetCatalogRequest())
        self.code = {item.id: item.code for item in self.catalog.items}
        self.recipes = {recipe.id: recipe for recipe in self.catalog.recipes}

    def restart(self):
        self.client.close()
        self.server = Server(self.data)
        self.client = Client(self.server.address, "judge", self.called)

    def create(self, inventory_id, layout="chest", stacks=()):
        stacks = [slot_stack(slot, *stack) for slot, stack in stacks]
        create = pb.CreateInventory(inventory_id=inventory_id, layout=layout, owner="", stacks=stacks)
        self.client.mutate("CreateInventory", create=create)

    def kit(self):
        world = json.loads((ROOT / "src" / "cli" / "traces" / "world.json").read_text())
        return [(entry["slot"], (entry["item"], entry["count"])) for entry in world["starting"]["player"]["slots"]]


def slot_stack(slot, item, count, attributes=b""):
    return pb.SlotStack(slot=slot, stack=pb.Stack(item=item, count=count, attributes=attributes))


def drop_from(inventory_id, slot, count=None):
    # `from` is a keyword in Python, so it cannot be written as an argument.
    return pb.DropItem(inventory_id=inventory_id, **{"from": pb.SlotQuantity(slot=slot, count=count)})


def move_to(inventory_id, slot, to):
    source = {"from": pb.SlotQuantity(slot=slot)}
    return pb.MoveItem(inventory_id=inventory_id, **source, to=pb.SlotRef(slot=to))


def frames_are_small(world):
    """the starter kit is at most 150 bytes, one changed count at most 24"""
    world.create("kit", "player", world.kit())
    follower = Follower(world.client, ["kit"])
    follower.caught_up()
    assert len(follower.sizes) == 1 and follower.sizes[0] <= 150, follower.sizes
    assert len(follower.replicas[0].slots) == 33
    for _ in range(5):
        world.client.mutate("DropItem", drop=drop_from("kit", 28, 1))
        follower.converge()
    assert len(follower.sizes) > 1 and max(follower.sizes[1:]) <= 24, follower.sizes
    follower.cancel()
    return f"{follower.sizes[0]} and {max(follower.sizes[1:])}"


def mutations_converge(world):
    """random mutations by every RPC: replicas equal GetInventory, and no item is created or lost"""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    names, items = ["left", "right"], ["oak_log", "oak_planks", "stick", "coal", "torch", "diamond_axe"]
    for name in names:
        world.create(name, "player", [(0, ("oak_log", 64)), (9, ("coal", 10))])
    total = {world.code[item]: 0 for item in items}
    total[world.code["oak_log"]], total[world.code["coal"]] = 128, 20
    follower = Follower(world.client, names)
    follower.caught_up()
    done = refusals = 0
    for step in range(400):
        try:
            for item, count in one_mutation(world, chance, names, items):
                total[item] += count
            done += 1
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, f"seed {seed}, step {step}: {error.details()}"
            assert detail(error, "ErrorInfo").reason in ("NOT_ENOUGH", "NO_ROOM", "SLOT_EMPTY", "SLOT_OCCUPIED")
            refusals += 1
        if step % 20 == 19:
            follower.converge()
            held = dict.fromkeys(total, 0)
            for replica in follower.replicas:
                for item, count, _ in replica.slots.values():
                    held[item] += count
            assert held == total, f"seed {seed}, step {step}: {held} instead of {total}"
    follower.cancel()
    assert done > 100, f"seed {seed}: only {done} were carried out"
    return f"{done} done, {refusals} refused, {len(follower.sizes)} messages, seed {seed}"


def one_mutation(world, chance, names, items):
    """Sends one random mutation; returns the created (+) and removed (-) items as (item code, count)."""
    client, code, name = world.client, world.code, chance.choice(names)
    other = names[1 - names.index(name)]
    item, count, slot = chance.choice(items), chance.randint(1, 40), chance.randrange(36)
    attributes = chance.choice([b"", b"", b"sharp", bytes(range(200))])
    quantity = pb.ItemQuantity(item=item, count=count)
    kind = chance.choice(["add", "add", "remove", "move", "move", "drop", "craft", "transfer", "set", "sort", "transact"])
    if kind == "add":
        stack = pb.Stack(item=item, count=count, attributes=attributes)
        add = pb.AddItem(inventory_id=name, stack=stack, allow_partial=True)
        reply = client.mutate("AddItem", add=add)
        assert reply.added + reply.remainder == count
        return [(code[item], reply.added)]
    if kind == "remove":
        client.mutate("RemoveItem", remove=pb.RemoveItem(inventory_id=name, item=quantity))
        return [(code[item], -count)]
    if kind == "move":
        client.mutate("MoveItem", move=move_to(name, slot, chance.randrange(36)))
        return []
    if kind == "drop":
        dropped = client.mutate("DropItem", drop=drop_from(name, slot)).dropped
        return [(dropped.item_code, -dropped.count)]
    if kind == "craft":
        recipe, times = world.recipes[chance.choice(["oak_planks", "stick", "torch"])], chance.randint(1, 3)
        client.mutate("CraftItem", craft=pb.CraftItem(inventory_id=name, recipe=recipe.id, times=times))
        made = [(part.item_code, part.count * times) for part in recipe.outputs]
        return made + [(part.item_code, -part.count * times) for part in recipe.inputs]
    if kind == "transfer":
        transfer = pb.TransferItem(from_inventory_id=name, to_inventory_id=other, item=quantity, allow_partial=True)
        client.mutate("TransferItem", transfer=transfer)
        return []
    if kind == "set":
        wanted = pb.Stack(item=item, count=1, attributes=attributes)
        replaced = client.mutate("SetSlot", set=pb.SetSlot(inventory_id=name, at=pb.SlotRef(slot=slot), stack=wanted)).replaced
        return [(code[item], 1)] + ([(replaced.item_code, -replaced.count)] if replaced.count else [])
    if kind == "sort":
        stacks = sorted(client.get(name).stacks, key=lambda entry: (entry.stack.item_code, entry.stack.count))
        sorted_stacks = [pb.SlotStack(slot=index, stack=entry.stack) for index, entry in enumerate(stacks)]
        client.mutate("RearrangeInventory", rearrange=pb.RearrangeInventory(inventory_id=name, stacks=sorted_stacks))
        return []
    operations = [
        pb.Operation(add=pb.AddItem(inventory_id=name, stack=pb.Stack(item=item, count=1))),
        pb.Operation(remove=pb.RemoveItem(inventory_id=other, item=quantity)),
    ]
    client.mutate("Transact", operations=operations)
    return [(code[item], 1 - count)]


def transfers_are_atomic(world):
    """a transfer is atomic for readers: the sum of both sides is the same after every message"""
    world.create("here", stacks=[(0, ("stone", 64)), (1, ("stone", 64))])
    world.create("there")
    follower = Follower(world.client, ["here", "there"])
    follower.caught_up()

    def whole():
        held = sum(count for replica in follower.replicas for _, count, _ in replica.slots.values())
        assert held == 128, f"{held} of 128"

    def trade(forth, back):
        client = Client(world.server.address, f"judge-{forth}", world.called)
        for _ in range(60):
            what = pb.ItemQuantity(item="stone", count=1)
            for source, target in [(forth, back), (back, forth)]:
                transfer = pb.TransferItem(from_inventory_id=source, to_inventory_id=target, item=what)
                with contextlib.suppress(grpc.RpcError):
                    client.mutate("TransferItem", transfer=transfer)
        client.close()

    traders = [threading.Thread(target=trade, args=sides) for sides in [("here", "there"), ("there", "here")]]
    for trader in traders:
        trader.start()
    taken = 0
    while any(trader.is_alive() for trader in traders) or taken == 0:
        with contextlib.suppress(queue.Empty):
            follower.take(wait_s=0.2)
            taken += 1
        whole()
    follower.converge(whole)
    follower.cancel()
    return f"{len(follower.sizes)} messages"


def a_reader_resumes(world):
    """a reader resumes with a delta from its cursor; from an unknown cursor it gets a full state with the reason"""
    world.create("book", stacks=[(0, ("stone", 64)), (3, ("dirt", 5))])
    first = Follower(world.client, ["book"])
    first.caught_up()
    first.cancel()
    for slot in (0, 3):
        world.client.mutate("DropItem", drop=drop_from("book", slot, 1))
    epoch, revision = first.cursors()[0]
    again = Follower(world.client, ["book"], first.cursors(), first.replicas)
    (change,) = again.caught_up()
    assert not change.HasField("full") and change.advance == 2 and list(change.slots) == [0, 3]
    again.converge()
    again.cancel()
    same = Follower(world.client, ["book"], again.cursors(), again.replicas)
    assert same.caught_up() == [], "nothing was missing"
    same.cancel()
    for cursor, reason in [((epoch, revision + 99), "FROM_THE_FUTURE"), ((epoch ^ 1, revision), "EPOCH_CHANGED")]:
        other = Follower(world.client, ["book"], [cursor])
        (change,) = other.caught_up()
        assert change.full.reason == pb.FullReason.Value(f"FULL_REASON_{reason}")
        other.converge()
        other.cancel()
    return "2 slots by a delta"


def a_deletion_is_reported(world):
    """a deletion and a recreation under the same id reach the reader, in a new epoch"""
    world.create("short", stacks=[(0, ("stone", 1))])
    follower = Follower(world.client, ["short"])
    follower.caught_up()
    epoch = follower.replicas[0].epoch
    world.client.mutate("DeleteInventory", delete=pb.DeleteInventory(inventory_id="short"))
    message = follower.take()
    assert list(message.changes) == [pb.InventoryChange(absent=True)], "the message contains only that"
    resumed = Follower(world.client, ["short"], [(epoch, 1)])
    assert resumed.caught_up() == [pb.InventoryChange(absent=True)], "and again to who resumes"
    with refused(grpc.StatusCode.NOT_FOUND, "INVENTORY_NOT_FOUND", inventory_id="short"):
        world.client.get("short")
    world.create("short", "player")
    follower.converge()
    resumed.converge()
    resumed.cancel()
    assert follower.replicas[0].epoch != epoch and follower.replicas[0].size == 36
    follower.cancel()
    return None


def a_nonexistent_inventory_is_followed(world):
    """an inventory that does not exist is absent, and followed once it is created"""
    world.create("early", stacks=[(0, ("stone", 1))])
    follower = Follower(world.client, ["later", "early", "never"])
    changes = follower.caught_up()
    assert [change.watch for change in changes if change.absent] == [0, 2], changes
    world.create("later", stacks=[(5, ("coal", 3))])
    while follower.replicas[0].revision is None:
        follower.take()
    assert follower.replicas[0].is_at(world.client.get("later"))
    assert follower.replicas[1].is_at(world.client.get("early")) and follower.replicas[2].revision is None
    follower.cancel()
    return None


def predictions_are_checked(world):
    """a correct prediction needs no frame; a full frame immediately corrects a wrong one and repairs a reported desync"""
    world.create("foretold", stacks=[(0, ("stone", 9))])
    stone = world.code["stone"]
    follower = Follower(world.client, ["foretold"], session="oracle")
    follower.caught_up()
    replica = follower.replicas[0]

    def drop(left, key):
        expected = replica.predict({0: (stone, left, b"")})
        predicted = [pb.PredictedDigest(inventory_id="foretold", digest=expected)]
        wanted = drop_from("foretold", 0, 1)
        reply = world.client.mutate("DropItem", key=key, session="oracle", predicted=predicted, drop=wanted)
        return reply.receipt.prediction_confirmed

    def reason_of_next():
        (change,) = follower.take().changes
        return pb.FullReason.Name(change.full.reason)

    assert drop(8, "first") and drop(7, "second")
    world.client.mutate("AddItem", add=pb.AddItem(inventory_id="foretold", stack=pb.Stack(item="coal", count=1)))
    message = follower.take()
    (change,) = message.changes
    assert (change.skipped, change.advance, list(change.slots)) == (2, 1, [1]), change
    assert list(message.covered) == [murmur3_x86_32(SEED_A, key) for key in (b"first", b"second")]
    follower.converge()
    assert not drop(1, "third")
    assert reason_of_next() == "FULL_REASON_CORRECTION"
    follower.converge()
    replica.slots[3] = (stone, 64, b"")
    mine = replica.digest()
    have = pb.InventoryVersion(inventory_id="foretold", epoch=replica.epoch, revision=replica.revision)
    have.digest.a, have.digest.b = mine["a"], mine["b"]
    report = pb.ReportDesyncRequest(session="oracle", have=have)
    current = world.client.call("ReportDesync", report).current
    assert current == world.client.get("foretold").version
    assert reason_of_next() == "FULL_REASON_CORRECTION"
    follower.converge()
    follower.cancel()
    return f"{len(follower.sizes) - 1} frames"


def a_retry_applies_once(world):
    """the same key and payload is replayed; with another payload it is rejected; keys are scoped by caller"""
    world.create("retry")
    add = pb.AddItem(inventory_id="retry", stack=pb.Stack(item="stone", count=5))
    first = world.client.mutate("AddItem", key="k1", add=add)
    again = world.client.mutate("AddItem", key="k1", add=add)
    assert not first.receipt.replayed and again.receipt.replayed
    assert list(first.receipt.inventories) == list(again.receipt.inventories)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "IDEMPOTENCY_KEY_REUSED"):
        other = pb.AddItem(inventory_id="retry", stack=pb.Stack(item="stone", count=6))
        world.client.mutate("AddItem", key="k1", add=other)
    stranger = Client(world.server.address, "somebody-else", world.called)
    assert not stranger.mutate("AddItem", key="k1", add=add).receipt.replayed
    stranger.close()
    assert sum(entry.stack.count for entry in world.client.get("retry").stacks) == 10
    return None


def errors_are_rich(world):
    """errors have google.rpc details: the reason, the numbers, the field"""
    world.create("poor", stacks=[(0, ("coal", 2))])
    what = pb.ItemQuantity(item="coal", count=3)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NOT_ENOUGH", inventory_id="poor", wanted="3", held="2"):
        world.client.mutate("RemoveItem", remove=pb.RemoveItem(inventory_id="poor", item=what))
    with refused(grpc.StatusCode.ALREADY_EXISTS, "INVENTORY_EXISTS", inventory_id="poor"):
        world.create("poor")
    epoch = world.client.get("poor").version.epoch
    other = epoch % 0xFFFFFFFF + 1
    for guard in [dict(epoch=epoch, revision=7), dict(epoch=other, revision=1)]:
        context = pb.MutationContext(idempotency_key=uuid7())
        context.expected.add(inventory_id="poor", **guard)
        drop = pb.DropItemRequest(context=context, drop=drop_from("poor", 0))
        with refused(grpc.StatusCode.ABORTED, "STALE_REVISION", current_revision="1", epoch=str(epoch)):
            world.client.call("DropItem", drop)
    context = pb.MutationContext(idempotency_key=uuid7())
    context.expected.add(inventory_id="poor", revision=1)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        world.client.call("DropItem", pb.DropItemRequest(context=context, drop=drop.drop))
    try:
        world.client.mutate("AddItem", add=pb.AddItem(inventory_id="poor", stack=pb.Stack(item="zinc", count=1)))
    except grpc.RpcError as error:
        (violation,) = detail(error, "BadRequest").field_violations
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and violation.field == "add.stack.item", violation
    else:
        raise AssertionError("zinc was accepted")
    assert world.client.get("poor").version.revision == 1, "a refusal changes nothing"
    return None


def inventories_are_listed(world):
    """lists come in pages, in order, each inventory once"""
    for number in range(5):
        world.create(f"page-{number}")
    found, token = [], ""
    while True:
        request = pb.ListInventoriesRequest(prefix="page-", page_size=2, page_token=token)
        page = world.client.call("ListInventories", request)
        found += [summary.version.inventory_id for summary in page.inventories]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"page-{number}" for number in range(5)], found
    return None


def sigterm_drains(world):
    """SIGTERM ends streams with UNAVAILABLE and a retry delay, and the server with exit code 0"""
    follower = Follower(world.client, ["left", "right"])
    follower.caught_up()
    add = pb.AddItem(inventory_id="left", stack=pb.Stack(item="oak_log", count=1), allow_partial=True)
    before = world.client.mutate("AddItem", key="before-the-end", add=add).receipt
    follower.converge()
    code = world.server.terminate()
    while follower.take() is not None:
        pass
    assert follower.error.code() == grpc.StatusCode.UNAVAILABLE, follower.error
    assert detail(follower.error, "ErrorInfo").reason == "DRAINING"
    assert detail(follower.error, "RetryInfo").retry_delay.ToMilliseconds() > 0
    assert code == 0, f"exit code {code}"

    # And after it: the same states, keys and cursors.
    world.restart()
    resumed = Follower(world.client, ["left", "right"], follower.cursors(), follower.replicas)
    assert resumed.caught_up() == [], "the server has forgotten what it had sent"
    resumed.converge()
    again = world.client.mutate("AddItem", key="before-the-end", add=add).receipt
    assert again.replayed and list(again.inventories) == list(before.inventories)
    resumed.cancel()
    return None


def every_rpc_was_called(world):
    """every RPC of the service was called"""
    service = importlib.import_module("slotcast.v1.service_pb2").DESCRIPTOR.services_by_name["InventoryService"]
    missing = {method.name for method in service.methods} - world.called
    assert not missing, f"not called: {', '.join(sorted(missing))}"
    return f"{len(service.methods)} RPCs"


CHECKS = [
    frames_are_small,
    mutations_converge,
    transfers_are_atomic,
    a_reader_resumes,
    a_deletion_is_reported,
    a_nonexistent_inventory_is_followed,
    predictions_are_checked,
    a_retry_applies_once,
    errors_are_rich,
    inventories_are_listed,
    sigterm_drains,
    every_rpc_was_called,
]


def main():
    if "SLOTCAST_BIN" not in os.environ:
        sys.exit("give the server to judge: SLOTCAST_BIN=target/debug/slotcast tests/python/test_stream.py")
    global pb, stubs, rich
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slotcast-judge-") as folder:
        folder = pathlib.Path(folder)
        (folder / "generated").mkdir()
        pb, stubs, rich = generate(folder / "generated")
        world = World(folder / "data")
        try:
            for check in CHECKS:
                started = time.monotonic()
                try:
                    note = check(world)
                except Exception:
                    print(f"FAILED {check.__doc__}", flush=True)
                    traceback.print_exc()
                    sys.exit(1)
                note = f" ({note})" if note else ""
                print(f"ok {check.__doc__}{note}: {time.monotonic() - started:.1f} s", flush=True)
        finally:
            world.server.kill()
    print(f"ok, {len(CHECKS)} checks in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
