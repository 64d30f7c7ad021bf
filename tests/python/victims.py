#!/usr/bin/env python3
"""Well-behaved users of the service while it is attacked: a process of its own, with grpcio.

    victims.py ADDRESS FOLDER-OF-GENERATED-CODE CALLS-A-SECOND

One thread adds an item and takes it away again at a steady rate, another follows the inventory. For each line on standard
input the figures since the line before are written to standard output as JSON; `end` ends.
"""

import importlib
import json
import sys
import threading
import time

import grpc

from test_stream import Replica, uuid7

CALL_S = 10
INVENTORY = "victims-chest"


class Victims:
    def __init__(self, address, rate):
        self.rate, self.lock = rate, threading.Lock()
        self.latencies_ms, self.errors, self.messages = [], [], 0
        self.revision, self.replica = 0, Replica()
        self.moved = threading.Condition()
        self.channel = grpc.insecure_channel(address)
        self.stub = service.InventoryServiceStub(self.channel)
        self.metadata = [("slotcast-caller", "victims")]
        self.pause, self.idle = threading.Event(), threading.Event()
        layout = next(layout.id for layout in self.call("GetCatalog", service_pb.GetCatalogRequest()).layouts)
        create = mutations.CreateInventory(inventory_id=INVENTORY, layout=layout)
        self.mutate("CreateInventory", create=create)
        for work in (self.read, self.write):
            threading.Thread(target=work, daemon=True).start()

    def call(self, rpc, request):
        return getattr(self.stub, rpc)(request, metadata=self.metadata, timeout=CALL_S)

    def mutate(self, rpc, **fields):
        context = mutations.MutationContext(idempotency_key=uuid7())
        reply = self.call(rpc, getattr(mutations, f"{rpc}Request")(context=context, **fields))
        self.revision = reply.receipt.inventories[0].revision

    def write(self):
        due, add = time.monotonic(), True
        while True:
            if self.pause.is_set():
                self.idle.set()
                time.sleep(0.005)
                due = time.monotonic()
                continue
            self.idle.clear()
            # Time under test: a constant rate of calls.
            time.sleep(max(0, due - time.monotonic()))
            # After a late call, the next ones keep their distance.
            due = max(due + 1 / self.rate, time.monotonic() - 1)
            self.write_one(add)
            add = not add

    def write_one(self, add):
        stack, what = inventory.Stack(item="stone", count=1), mutations.ItemQuantity(item="stone", count=1)
        began = time.monotonic()
        try:
            if add:
                self.mutate("AddItem", add=mutations.AddItem(inventory_id=INVENTORY, stack=stack))
            else:
                self.mutate("RemoveItem", remove=mutations.RemoveItem(inventory_id=INVENTORY, item=what))
        except grpc.RpcError as error:
            with self.lock:
                self.errors.append(f"{error.code().name}: {error.details()}")
        with self.lock:
            self.latencies_ms.append((time.monotonic() - began) * 1_000)

    def read(self):
        watch = stream.SubscribeInventoryRequest(inventories=[stream.Watch(inventory_id=INVENTORY)])
        try:
            for answer in self.stub.SubscribeInventory(watch, metadata=self.metadata):
                with self.moved:
                    for change in answer.changes:
                        self.replica.apply(change)
                    self.messages += 1
                    self.moved.notify_all()
            error = "the stream ended"
        except grpc.RpcError as failed:
            error = f"{failed.code().name}: {failed.details()}"
        except AssertionError as failed:
            error = f"{failed}"
        with self.lock:
            self.errors.append(f"stream: {error}")

    def figures(self):
        """Returns the figures since the last call. Pauses the writer until the stream has converged, for at most `CALL_S`."""
        self.pause.set()
        self.idle.wait(2 * CALL_S)
        with self.moved:
            caught_up = self.moved.wait_for(lambda: self.replica.revision == self.revision, CALL_S)
            messages, self.messages = self.messages, 0
        with self.lock:
            latencies, self.latencies_ms = sorted(self.latencies_ms), []
            errors, self.errors = self.errors, []
        if not caught_up:
            errors.append(f"stream: at revision {self.replica.revision} instead of {self.revision}")
        self.idle.clear()
        self.pause.clear()
        at = {f"p{percent}": latencies[len(latencies) * percent // 100] if latencies else 0 for percent in (50, 99)}
        return {"calls": len(latencies), **at, "max": max(latencies, default=0), "messages": messages, "errors": errors}


def main():
    global inventory, mutations, service, service_pb, stream
    address, generated, rate = sys.argv[1:]
    sys.path.insert(0, generated)
    names = ["inventory_pb2", "mutations_pb2", "service_pb2_grpc", "service_pb2", "stream_pb2"]
    inventory, mutations, service, service_pb, stream = (importlib.import_module(f"slotcast.v1.{name}") for name in names)
    victims = Victims(address, float(rate))
    print("{}", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(json.dumps(victims.figures()), flush=True)


if __name__ == "__main__":
    main()
