// A replica of one inventory: applies the changes of a stream as stream.proto documents them, and verifies every digest.
//
// It uses neither packages nor Buffer, so that the tests in Node and in the browser share it. Messages have field names in
// lowerCamelCase, as protobuf-es and proto-loader read them; 64-bit integers may be of type Number or BigInt. The digest is a
// third implementation of the definition in tests/python/digest.py, with 32-bit arithmetic only.

const SEED_A = 0x51070ca5;
const SEED_B = 0x0ddba115;

export function check(condition, message) {
  if (!condition) throw new Error(message);
}

function murmur3(seed, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const mix = (word) => {
    word = Math.imul(word, 0xcc9e2d51);
    return Math.imul((word << 15) | (word >>> 17), 0x1b873593);
  };
  const whole = bytes.length & ~3;
  let hash = seed;
  for (let at = 0; at < whole; at += 4) {
    hash ^= mix(view.getInt32(at, true));
    hash = (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0;
  }
  let tail = 0;
  for (let at = bytes.length - 1; at >= whole; at--) tail = (tail << 8) | bytes[at];
  if (whole < bytes.length) hash ^= mix(tail);
  hash ^= bytes.length;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

// Returns both lanes and the folded digest of [slot, {item, count, attributes}].
export function digest(slots) {
  let [a, b] = [0, 0];
  for (const [slot, { item, count, attributes }] of slots) {
    const encoded = new Uint8Array(12 + attributes.length);
    const view = new DataView(encoded.buffer);
    [slot, item, count].forEach((word, index) => view.setUint32(4 * index, word, true));
    encoded.set(attributes, 12);
    a = (a + murmur3(SEED_A, encoded)) >>> 0;
    b = (b + murmur3(SEED_B, encoded)) >>> 0;
  }
  return { a, b, folded: (a ^ b) >>> 0 };
}

export class Replica {
  slots = new Map();
  epoch = null;
  revision = null;
  frames = { full: 0, delta: 0, absent: 0 };

  // Applies a change as stream.proto defines it for InventoryChange. Returns its kind.
  apply(change) {
    const kind = change.absent ? "absent" : change.full ? "full" : "delta";
    this.frames[kind] += 1;
    if (kind === "absent") {
      this.slots.clear();
      this.revision = null;
      return kind;
    }
    if (kind === "full") {
      this.epoch = change.full.epoch;
      this.revision = Number(change.full.revision);
      this.size = change.full.slots;
      this.slots.clear();
    } else {
      check(this.revision !== null, "the stream sent a delta before any full state");
      this.revision += Number(change.skipped) + Number(change.advance);
    }
    const kept = change.slots.length - change.items.length;
    check(change.slots.length === change.counts.length, `${change.slots.length} slots, but ${change.counts.length} counts`);
    change.slots.forEach((slot, index) => {
      const count = change.counts[index];
      check(slot < this.size, `slot ${slot} of an inventory with ${this.size} slots`);
      if (index >= kept) this.slots.set(slot, { item: change.items[index - kept], count, attributes: new Uint8Array() });
      else if (count === 0) this.slots.delete(slot);
      else this.slots.set(slot, { ...this.slots.get(slot), count });
    });
    change.attributeSlots.forEach((slot, index) => {
      this.slots.set(slot, { ...this.slots.get(slot), attributes: change.attributes[index] });
    });
    const { folded } = digest(this.slots);
    check(folded === change.check, `DESYNC at revision ${this.revision}: the digest is ${folded}, the frame has ${change.check}`);
    return kind;
  }

  // Compares the replica with the version in a heartbeat.
  verify(mark) {
    const mine = digest(this.slots);
    const have = [this.epoch, this.revision, mine.a, mine.b].join();
    const wanted = [mark.epoch, mark.revision, mark.digest?.a, mark.digest?.b].join();
    check(have === wanted, `DESYNC: epoch, revision and digest are ${have}, the heartbeat has ${wanted}`);
  }

  // Returns whether the replica equals an inventory from GetInventory.
  isAt({ version, slots, stacks }) {
    if (this.epoch !== version.epoch || this.revision !== Number(version.revision)) return false;
    const text = (entries) => entries.map((entry) => entry.join(":")).join(" ");
    const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    const held = [...this.slots].sort(([left], [right]) => left - right);
    const mine = text(held.map(([slot, { item, count, attributes }]) => [slot, item, count, hex(attributes)]));
    const theirs = text(stacks.map(({ slot, stack }) => [slot, stack.itemCode, stack.count, hex(stack.attributes)]));
    check(mine === theirs, `DESYNC at revision ${this.revision}: the replica has ${mine}, GetInventory returned ${theirs}`);
    const { a, b } = digest(this.slots);
    check(a === version.digest.a && b === version.digest.b, `DESYNC at revision ${this.revision}: same slots, but another digest`);
    check(this.size === slots, `the replica has ${this.size} slots, GetInventory returned ${slots}`);
    return true;
  }
}
