// Conformance of the service with a client in a language without 64-bit integers: Node, with grpc-js and the protos alone.
//
// replica.mjs applies full and delta frames as stream.proto documents them, and verifies their digests.
//
//     SLOTCAST_BIN=target/debug/slotcast node tests/node/test_stream.mjs
//
// ./test installs the packages into .cache/node.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as fixture from "./fixture.mjs";
import { mutation } from "./follower.mjs";
import { digest, Replica } from "./replica.mjs";

const grpc = fixture.require("@grpc/grpc-js");
const loader = fixture.require("@grpc/proto-loader");

const WAIT_MS = 5_000;

class World {
  constructor(address) {
    const options = { longs: Number, enums: String, defaults: true, oneofs: true, includeDirs: [join(fixture.root, "proto")] };
    const { slotcast } = grpc.loadPackageDefinition(loader.loadSync("slotcast/v1/service.proto", options));
    this.client = new slotcast.v1.InventoryService(address, grpc.credentials.createInsecure());
    this.metadata = new grpc.Metadata();
    this.metadata.set("slotcast-caller", "node-client");
  }

  call(rpc, request) {
    const options = { deadline: Date.now() + WAIT_MS };
    return new Promise((resolve, reject) => {
      this.client[rpc](request, this.metadata, options, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
  }

  mutate(rpc, fields) {
    return this.call(rpc, mutation(fields));
  }

  async get(inventoryId) {
    return (await this.call("GetInventory", { inventoryId })).inventory;
  }

  follow(inventoryId) {
    return new Follower(this, inventoryId);
  }
}

class Follower {
  replica = new Replica();
  reasons = [];

  constructor(world, inventoryId) {
    [this.world, this.inventoryId] = [world, inventoryId];
    this.stream = world.client.SubscribeInventory({ inventories: [{ inventoryId }] }, world.metadata);
    this.stream.on("data", (message) => {
      try {
        for (const change of message.changes) {
          if (change.full) this.reasons.push(change.full.reason);
          this.replica.apply(change);
        }
      } catch (error) {
        this.failed ??= error;
      }
      this.news?.();
    });
    this.stream.on("error", (error) => {
      this.failed ??= error;
      this.news?.();
    });
  }

  // Waits for messages until `done()`.
  async until(done, what) {
    const deadline = Date.now() + WAIT_MS;
    for (;;) {
      if (this.failed) throw this.failed;
      if (done()) return;
      const left = deadline - Date.now();
      assert.ok(left > 0, `${what}: not within ${WAIT_MS} ms`);
      let timer;
      await new Promise((resolve) => {
        this.news = resolve;
        timer = setTimeout(resolve, left);
      });
      clearTimeout(timer);
    }
  }

  async converge() {
    const wanted = await this.world.get(this.inventoryId);
    await this.until(() => this.replica.isAt(wanted), `revision ${wanted.version.revision}`);
  }

  cancel() {
    this.failed = new Error("cancelled");
    this.stream.cancel();
  }
}

function vectorsAgree() {
  const vectors = JSON.parse(readFileSync(join(fixture.root, "tests/vectors/digest.json"), "utf8"));
  for (const { name, slots, expected } of vectors) {
    const held = slots.map(({ slot, item_code: item, count, attributes_hex = "" }) => [
      slot,
      { item, count, attributes: Buffer.from(attributes_hex, "hex") },
    ]);
    assert.deepEqual(digest(held), expected, name);
  }
  assert.ok(vectors.length > 0);
  return `${vectors.length} vectors`;
}

async function framesAreApplied(world) {
  const inventoryId = "node-chest";
  await world.mutate("CreateInventory", { create: { inventoryId, layout: "chest" } });
  const follower = world.follow(inventoryId);
  await follower.converge();
  const attributes = Buffer.from("sharp");
  await world.mutate("AddItem", { add: { inventoryId, stack: { item: "stone", count: 70 } } });
  await follower.converge();
  await world.mutate("SetSlot", { set: { inventoryId, at: { slot: 9 }, stack: { item: "coal", count: 3, attributes } } });
  await follower.converge();
  await world.mutate("MoveItem", { move: { inventoryId, from: { slot: 0, count: 10 }, to: { slot: 20 } } });
  await world.mutate("RemoveItem", { remove: { inventoryId, item: { item: "stone", count: 6 } } });
  await follower.converge();
  const slots = Array.from({ length: 15 }, (_, slot) => ({ set: { inventoryId, at: { slot }, stack: { item: "dirt", count: slot + 1 } } }));
  await world.mutate("Transact", { operations: slots });
  await follower.converge();
  const { dropped } = await world.mutate("DropItem", { drop: { inventoryId, from: { slot: 14 } } });
  assert.equal(dropped.count, 15);
  await follower.converge();
  assert.ok(follower.reasons.includes("FULL_REASON_MANY_CHANGES"), `${follower.reasons}`);
  const { full, delta } = follower.replica.frames;
  assert.ok(full >= 2 && delta >= 3, `${full} full, ${delta} deltas`);
  await world.mutate("DeleteInventory", { delete: { inventoryId } });
  await follower.until(() => follower.replica.frames.absent === 1, "the deletion");
  await world.mutate("CreateInventory", { create: { inventoryId, layout: "player" } });
  await follower.converge();
  const early = world.follow("node-later");
  await early.until(() => early.replica.frames.absent === 1, "that it is absent");
  await world.mutate("CreateInventory", { create: { inventoryId: "node-later", layout: "chest" } });
  await early.converge();
  for (const done of [follower, early]) done.cancel();
  return `${full} full, ${delta} deltas, a deletion, a creation after it`;
}

async function refusalsAreTyped(world) {
  const refused = (rpc, request, code) =>
    assert.rejects(world.call(rpc, request), (error) => error.code === grpc.status[code] && error.metadata.get("grpc-status-details-bin").length === 1);
  await refused("GetInventory", { inventoryId: "nowhere" }, "NOT_FOUND");
  await refused("AddItem", { add: { inventoryId: "nowhere" } }, "INVALID_ARGUMENT");
}

const server = await fixture.Server.start(join(fixture.temporaryFolder(), "data"));
const world = new World(new URL(server.url).host);
await fixture.run([
  ["the digest is that of the published vectors", vectorsAgree],
  ["frames are applied as stream.proto defines them", () => framesAreApplied(world)],
  ["refusals have their code and details", () => refusalsAreTyped(world)],
  ["SIGTERM ends the server", () => {
    world.client.close();
    return server.terminate();
  }],
], 60);
process.exit(0);
