// Conformance of the service with a client in a language without 64-bit integers: Node, with grpc-js and the protos alone.
//
// The replica applies full and delta frames as stream.proto documents them. The digest is a third implementation of the
// definition in tests/python/digest.py, with 32-bit arithmetic only.
//
//     SLOTCAST_BIN=target/debug/slotcast node tests/node/test_stream.mjs
//
// ./test installs the packages into .cache/node.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../", import.meta.url));
const require = createRequire(join(root, ".cache/node/"));
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const SEED_A = 0x51070ca5;
const SEED_B = 0x0ddba115;
const WAIT_MS = 5_000;

function murmur3(seed, octets) {
  const mix = (word) => {
    word = Math.imul(word, 0xcc9e2d51);
    return Math.imul((word << 15) | (word >>> 17), 0x1b873593);
  };
  const whole = octets.length & ~3;
  let hash = seed;
  for (let at = 0; at < whole; at += 4) {
    hash ^= mix(octets.readInt32LE(at));
    hash = (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0;
  }
  if (whole < octets.length) hash ^= mix(octets.readUIntLE(whole, octets.length - whole));
  hash ^= octets.length;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

// Returns both lanes and the folded digest of [slot, {item, count, attributes}].
function digest(slots) {
  let [a, b] = [0, 0];
  for (const [slot, { item, count, attributes }] of slots) {
    const encoded = Buffer.alloc(12 + attributes.length);
    [slot, item, count].forEach((word, index) => encoded.writeUInt32LE(word, 4 * index));
    attributes.copy(encoded, 12);
    a = (a + murmur3(SEED_A, encoded)) >>> 0;
    b = (b + murmur3(SEED_B, encoded)) >>> 0;
  }
  return { a, b, folded: (a ^ b) >>> 0 };
}

class Replica {
  slots = new Map();
  revision = null;
  frames = { full: 0, delta: 0, absent: 0 };

  apply(change) {
    if (change.absent) {
      this.frames.absent += 1;
      this.slots.clear();
      this.revision = null;
      return;
    }
    if (change.full) {
      this.frames.full += 1;
      ({ epoch: this.epoch, revision: this.revision, slots: this.size } = change.full);
      this.slots.clear();
    } else {
      this.frames.delta += 1;
      assert.notEqual(this.revision, null, "a delta came before any full state");
      this.revision += change.skipped + change.advance;
    }
    const kept = change.slots.length - change.items.length;
    assert.equal(change.slots.length, change.counts.length);
    change.slots.forEach((slot, index) => {
      const count = change.counts[index];
      assert.ok(slot < this.size, `slot ${slot} of ${this.size}`);
      if (index >= kept) this.slots.set(slot, { item: change.items[index - kept], count, attributes: Buffer.alloc(0) });
      else if (count === 0) this.slots.delete(slot);
      else this.slots.set(slot, { ...this.slots.get(slot), count });
    });
    change.attribute_slots.forEach((slot, index) => {
      this.slots.set(slot, { ...this.slots.get(slot), attributes: change.attributes[index] });
    });
    assert.equal(digest(this.slots).folded, change.check, "DESYNC: not the digest that the frame tells");
  }

  // Returns whether the replica equals an inventory from GetInventory.
  isAt({ version, slots, stacks }) {
    if (this.epoch !== version.epoch || this.revision !== version.revision) return false;
    const mine = digest(this.slots);
    assert.deepEqual({ a: mine.a, b: mine.b }, version.digest, "DESYNC: same revision, other digest");
    const expected = stacks.map(({ slot, stack }) => [slot, stack.item_code, stack.count, stack.attributes.toString("hex")]);
    const held = [...this.slots].sort(([left], [right]) => left - right);
    assert.deepEqual(held.map(([slot, s]) => [slot, s.item, s.count, s.attributes.toString("hex")]), expected);
    assert.equal(this.size, slots);
    return true;
  }
}

class World {
  constructor(address) {
    const options = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true, includeDirs: [join(root, "proto")] };
    const { slotcast } = grpc.loadPackageDefinition(loader.loadSync("slotcast/v1/service.proto", options));
    this.client = new slotcast.v1.InventoryService(address, grpc.credentials.createInsecure());
    this.metadata = new grpc.Metadata();
    this.metadata.set("slotcast-caller", "node-judge");
  }

  call(rpc, request) {
    const options = { deadline: Date.now() + WAIT_MS };
    return new Promise((resolve, reject) => {
      this.client[rpc](request, this.metadata, options, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
  }

  mutate(rpc, fields) {
    return this.call(rpc, { context: { idempotency_key: randomUUID() }, ...fields });
  }

  async get(inventory_id) {
    return (await this.call("GetInventory", { inventory_id })).inventory;
  }

  follow(inventory_id) {
    return new Follower(this, inventory_id);
  }
}

class Follower {
  replica = new Replica();
  reasons = [];

  constructor(world, inventory_id) {
    [this.world, this.inventory_id] = [world, inventory_id];
    this.stream = world.client.SubscribeInventory({ inventories: [{ inventory_id }] }, world.metadata);
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
    const wanted = await this.world.get(this.inventory_id);
    await this.until(() => this.replica.isAt(wanted), `revision ${wanted.version.revision}`);
  }

  cancel() {
    this.failed = new Error("cancelled");
    this.stream.cancel();
  }
}

function vectorsAgree() {
  const vectors = JSON.parse(readFileSync(join(root, "tests/vectors/digest.json"), "utf8"));
  for (const { name, slots, expected } of vectors) {
    const held = slots.map(({ slot, item_code: item, count, attributes_hex = "" }) => [
      slot,
      { item, count, attributes: Buffer.from(attributes_hex, "hex") },
    ]);
    assert.deepEqual(digest(held), expected, name);
  }
  assert.ok(vectors.length > 0);
  return `the digest is that of ${vectors.length} published vectors`;
}

async function framesAreApplied(world) {
  const inventory_id = "node-chest";
  await world.mutate("CreateInventory", { create: { inventory_id, layout: "chest" } });
  const follower = world.follow(inventory_id);
  await follower.converge();
  const attributes = Buffer.from("sharp");
  await world.mutate("AddItem", { add: { inventory_id, stack: { item: "stone", count: 70 } } });
  await follower.converge();
  await world.mutate("SetSlot", { set: { inventory_id, at: { slot: 9 }, stack: { item: "coal", count: 3, attributes } } });
  await follower.converge();
  await world.mutate("MoveItem", { move: { inventory_id, from: { slot: 0, count: 10 }, to: { slot: 20 } } });
  await world.mutate("RemoveItem", { remove: { inventory_id, item: { item: "stone", count: 6 } } });
  await follower.converge();
  const slots = Array.from({ length: 15 }, (_, slot) => ({ set: { inventory_id, at: { slot }, stack: { item: "dirt", count: slot + 1 } } }));
  await world.mutate("Transact", { operations: slots });
  await follower.converge();
  const { dropped } = await world.mutate("DropItem", { drop: { inventory_id, from: { slot: 14 } } });
  assert.equal(dropped.count, 15);
  await follower.converge();
  assert.ok(follower.reasons.includes("FULL_REASON_MANY_CHANGES"), `${follower.reasons}`);
  const { full, delta } = follower.replica.frames;
  assert.ok(full >= 2 && delta >= 3, `${full} full, ${delta} deltas`);
  await world.mutate("DeleteInventory", { delete: { inventory_id } });
  await follower.until(() => follower.replica.frames.absent === 1, "the deletion");
  await world.mutate("CreateInventory", { create: { inventory_id, layout: "player" } });
  await follower.converge();
  const early = world.follow("node-later");
  await early.until(() => early.replica.frames.absent === 1, "that it is absent");
  await world.mutate("CreateInventory", { create: { inventory_id: "node-later", layout: "chest" } });
  await early.converge();
  for (const done of [follower, early]) done.cancel();
  return `frames are applied as stream.proto tells: ${full} full, ${delta} deltas, a deletion, a creation after it`;
}

async function refusalsAreTyped(world) {
  const refused = (rpc, request, code) =>
    assert.rejects(world.call(rpc, request), (error) => error.code === grpc.status[code] && error.metadata.get("grpc-status-details-bin").length === 1);
  await refused("GetInventory", { inventory_id: "nowhere" }, "NOT_FOUND");
  await refused("AddItem", { add: { inventory_id: "nowhere" } }, "INVALID_ARGUMENT");
  return "refusals carry their code and details";
}

const bin = process.env.SLOTCAST_BIN;
assert.ok(bin, "give the server to judge: SLOTCAST_BIN=target/debug/slotcast node tests/node/test_stream.mjs");
const folder = mkdtempSync(join(tmpdir(), "slotcast-node-"));
const server = spawn(bin, ["serve", "--listen", "127.0.0.1:0", "--data", join(folder, "data")], {
  stdio: ["ignore", "pipe", "inherit"],
  env: { ...process.env, SLOTCAST_LOG: "warn", SLOTCAST_ADMIN_LISTEN: "127.0.0.1:0" },
});
try {
  const [line] = await once(createInterface(server.stdout), "line", { signal: AbortSignal.timeout(10_000) });
  assert.match(line, /^listening on http:\/\//);
  const world = new World(line.replace("listening on http://", ""));
  console.log(`ok ${vectorsAgree()}`);
  for (const check of [framesAreApplied, refusalsAreTyped]) console.log(`ok ${await check(world)}`);
  world.client.close();
  server.kill("SIGTERM");
  const [code] = await once(server, "exit", { signal: AbortSignal.timeout(15_000) });
  assert.equal(code, 0, `exit code ${code}`);
} finally {
  server.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
}
