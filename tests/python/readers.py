"""Cases 38 and 39: readers that stall or read slowly converge, at no cost to others."""

import os
import threading
import time

import wire
from arena import MIB, module, size
from excess import OK
from floods import GET_INVENTORY, SUBSCRIBE
from test_stream import Replica, uuid7

OPERATIONS = int(os.environ.get("SLOTCAST_HOSTILE_OPERATIONS", size(20_000, 1_000_000)))
OPERATIONS_EACH, CALLS_AT_ONCE = 20, 64
SMALL_FRAMES = 2_000
SERVICE = "/slotcast.v1.InventoryService/"


def protos():
    names = ["inventory_pb2", "mutations_pb2", "service_pb2", "stream_pb2"]
    return [module(f"slotcast.v1.{name}") for name in names]


def create(connection, inventory_id):
    _, mutations, _, _ = protos()
    context = mutations.MutationContext(idempotency_key=uuid7())
    made = mutations.CreateInventory(inventory_id=inventory_id, layout="chest")
    request = mutations.CreateInventoryRequest(context=context, create=made)
    stream = connection.call(wire.call_headers(f"{SERVICE}CreateInventory"), wire.message(request.SerializeToString()))
    assert stream.status == OK, stream.summary()


def truth(connection, inventory_id):
    _, _, service, _ = protos()
    request = service.GetInventoryRequest(inventory_id=inventory_id)
    stream = connection.call(wire.call_headers(GET_INVENTORY), wire.message(request.SerializeToString()))
    assert stream.status == OK, stream.summary()
    return service.GetInventoryResponse.FromString(wire.messages(bytes(stream.data))[0]).inventory


def subscribe(connection, inventory_id, caller="reader"):
    _, _, _, streams = protos()
    request = streams.SubscribeInventoryRequest(inventories=[streams.Watch(inventory_id=inventory_id)])
    block = wire.call_headers(SUBSCRIBE, [("slotcast-caller", caller)])
    return connection.begin(block, wire.message(request.SerializeToString()))


class Reader:
    """Applies the messages of one stream to a replica."""

    def __init__(self, connection, stream):
        self.state, self.replica, self.frames = connection.known(stream), Replica(), 0

    def take(self):
        """Applies the complete messages so far, and returns how many of them contained changes."""
        _, _, _, streams = protos()
        assert not self.state.ended and self.state.reset is None, f"the stream ended: {self.state.summary()}"
        found = wire.messages(bytes(self.state.data))
        del self.state.data[: sum(5 + len(octets) for octets in found)]
        parsed = [streams.SubscribeInventoryResponse.FromString(octets) for octets in found]
        changed = [message for message in parsed if message.changes]
        for message in changed:
            for change in message.changes:
                self.replica.apply(change)
        self.frames += len(changed)
        return len(changed)


def take_exactly_one(connection, stream):
    """Grants window for the first message only."""
    state = connection.known(stream)
    for want in (5, None):
        want = want or 5 + int.from_bytes(state.data[1:5], "big")
        connection.send(wire.window_update(stream, want - len(state.data)))
        assert connection.until(lambda want=want: len(state.data) >= want, 5), "the first frame does not come"


def transact(inventory_id, pairs):
    """Returns a request that adds and removes items several times, in several slots."""
    inventory, mutations, _, _ = protos()
    operations = []
    for index in range(pairs):
        item = ["stone", "dirt", "coal"][index % 3]
        add = mutations.AddItem(inventory_id=inventory_id, stack=inventory.Stack(item=item, count=2))
        remove = mutations.RemoveItem(inventory_id=inventory_id, item=mutations.ItemQuantity(item=item, count=2))
        operations += [mutations.Operation(add=add), mutations.Operation(remove=remove)]
    # The last operation leaves a change.
    operations[-1].remove.item.count = 1
    return operations


def change_much(connection, inventory_id, operations, each):
    """Applies a number of operations with concurrent calls; calls `each` from time to time."""
    _, mutations, _, _ = protos()
    wanted, open_calls = transact(inventory_id, OPERATIONS_EACH // 2), []
    reset_one = mutations.Operation(set=mutations.SetSlot(inventory_id=inventory_id, at=mutations.SlotRef(slot=5)))
    block = wire.call_headers(f"{SERVICE}Transact", [("slotcast-caller", "busy")])
    for number in range(operations // OPERATIONS_EACH):
        context = mutations.MutationContext(idempotency_key=uuid7())
        # Empties the slots from time to time.
        listed = [mutations.Operation(set=mutations.SetSlot(inventory_id=inventory_id, at=mutations.SlotRef(slot=slot))) for slot in range(27)]
        chosen = listed if number % 200 == 199 else wanted
        request = mutations.TransactRequest(context=context, operations=chosen or [reset_one])
        open_calls.append(connection.begin(block, wire.message(request.SerializeToString())))
        if len(open_calls) >= CALLS_AT_ONCE:
            drain(connection, open_calls)
            each()
    drain(connection, open_calls)


def drain(connection, calls):
    for call in calls:
        stream = connection.outcome(call, 20)
        assert stream.status == OK, stream.summary()
        del connection.streams[call]
    calls.clear()


def stalled_reader(arena):
    """38 a reader that stalls over very many operations gets one conflated frame after the one in flight, and costs no memory"""
    name = f"stalled-{uuid7()}"
    with arena.connect() as busy, arena.connect(own=[(wire.INITIAL_WINDOW_SIZE, 0)], generous=False) as connection:
        create(busy, name)
        stream = subscribe(connection, name)
        take_exactly_one(connection, stream)
        reader = Reader(connection, stream)
        reader.take()
        rss, peak, began = arena.server.rss(), [0], time.monotonic()

        def look():
            peak[0] = max(peak[0], arena.server.rss())
            connection.receive()

        change_much(busy, name, OPERATIONS, look)
        took_s = time.monotonic() - began
        assert not reader.state.data, "it was sent something without window"
        grown = peak[0] - rss
        # Memory of the idempotency keys of these calls, besides that of any busy server.
        allowed = 32 * MIB + 400 * (OPERATIONS // OPERATIONS_EACH)
        assert grown < allowed, f"{grown / MIB:.1f} MiB more while a reader was stalled"
        wanted = truth(busy, name)
        connection.send(wire.window_update(stream, 1 << 20))
        ended = lambda: reader.take() >= 0 and reader.replica.is_at(wanted)  # noqa: E731
        assert connection.until(ended, 10), f"at revision {reader.replica.revision} instead of {wanted.version.revision}"
        # hyper polls for a frame before it has window for it, so one frame is already in flight when the reader stalls.
        assert reader.frames <= 3, f"{reader.frames - 1} frames instead of the one under way and a conflated one"
        revisions = wanted.version.revision
    return f"{OPERATIONS:,} operations, {revisions:,} revisions in {took_s:.1f} s, {grown / MIB:.1f} MiB more, {reader.frames - 1} frames"


def slow_reader(arena):
    """39 2,000 small frames to a slow reader: no GOAWAY, and it converges"""
    name, open_streams = f"slow-{uuid7()}", size(200, 50)
    with arena.connect() as busy, arena.connect(receive_bytes=4_096) as slow:
        create(busy, name)
        readers = [Reader(slow, subscribe(slow, name)) for _ in range(open_streams)]
        enough, failed = threading.Event(), []

        def work():
            try:
                while not enough.is_set():
                    change_much(busy, name, OPERATIONS_EACH, lambda: None)
                    time.sleep(0.02)
            except (AssertionError, wire.Closed) as error:
                failed.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        began, frames = time.monotonic(), 0
        try:
            while frames < SMALL_FRAMES + open_streams:
                assert time.monotonic() - began < 60, f"only {frames} frames after a minute"
                time.sleep(0.005)
                slow.receive(0.2, 256)
                frames = sum(reader.state.frames for reader in readers)
        finally:
            enough.set()
            worker.join()
        assert not failed, failed
        wanted = truth(busy, name)

        def all_at_the_truth():
            for reader in readers:
                reader.take()
            return all(reader.replica.is_at(wanted) for reader in readers)

        took_s = time.monotonic() - began
        assert slow.until(all_at_the_truth, 20), "not all replicas end at the truth"
        assert slow.goaway is None
        return f"{frames:,} frames on {open_streams} streams in {took_s:.1f} s, {wanted.version.revision} revisions"


def small_frames_to_the_server(arena):
    """39 in the other direction: a request in thousands of one-byte DATA frames is served, no GOAWAY"""
    octets = wire.message(b"\x0a\x0dvictims-chest" + b"\x12\xd0\x0f" + b"x" * 2_000)
    with arena.connect() as connection:
        for _ in range(5):
            stream = connection.begin(wire.call_headers(GET_INVENTORY), end=False)
            frames = [wire.frame(wire.DATA, 0, stream, octets[i : i + 1]) for i in range(len(octets) - 1)]
            for frame in frames:
                connection.send(frame)
            connection.send(wire.frame(wire.DATA, wire.END_STREAM, stream, octets[-1:]))
            answer = connection.outcome(stream)
            assert answer.status == OK, f"{answer.summary()} {connection.closed}"
        assert connection.goaway is None
    return f"{5 * len(octets):,} frames of DATA"


# Each round adds idempotency keys, which the server must remember; the trial itself measures the cost of the reader.
stalled_reader.rounds = size(2, 1)
ATTACKS = [stalled_reader, slow_reader, small_frames_to_the_server]
