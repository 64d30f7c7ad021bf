// Prints the bytes that a server sends to a player's client for each trace, for each encoding.
//
// usage: node benches/bytes/bytes.mjs DEMO.json [--json]
//
// DEMO.json is the output of `slotcast demo --json`. `just bytes` installs the packages and runs both.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { apply, changedSlots, inventoriesOf, itemCode, itemsCount, stackMax, starting, traces, world } from './rules.mjs';

const installed = createRequire(new URL('../../.cache/bytes/package.json', import.meta.url));
const load = name => import(pathToFileURL(installed.resolve(name)).href);
const { Encoder, schema, t } = await load('@colyseus/schema');
const { default: protobuf } = await load('protobufjs');

// What the transport adds to a message: the header of an HTTP/2 DATA frame and gRPC's prefix; or the header of a WebSocket
// frame (4 bytes from 126 bytes of payload) and Colyseus's message code. TLS and TCP/IP, the same for all, are not counted.
const HTTP2_FRAME = 9;
const GRPC = HTTP2_FRAME + 5;
const colyseusFramed = bytes => bytes + 1 + (bytes + 1 < 126 ? 2 : 4);

const { root } = protobuf.parse(`
  syntax = "proto3";
  message Slot { uint32 slot = 1; string item = 2; uint32 count = 3; }
  message Inventory { string id = 1; repeated Slot slots = 2; }
`);
const Inventory = root.lookupType('Inventory');

// Plays a trace and calls `changed(at_ms, before, after, names)` after each step.
function play(trace, changed) {
  const names = [...new Set(trace.steps.flatMap(inventoriesOf))];
  let inventories = Object.fromEntries(names.map(name => [name, starting(name)]));
  for (const step of trace.steps) {
    const next = apply(inventories, step);
    const affected = names.filter(name => changedSlots(inventories[name], next[name]).length > 0);
    changed(step.at_ms, inventories, next, affected);
    inventories = next;
  }
}

// Sums `size(before, after, name)` over the changed inventories of each step.
function eachOperation(trace, size) {
  let [messages, bytes] = [0, 0];
  play(trace, (_, before, after, names) => {
    for (const name of names) {
      messages += 1;
      bytes += size(before[name], after[name], name);
    }
  });
  return { messages, bytes };
}

// Returns the states at the end of each window in which something changed, with the state at its beginning.
function windows(trace, window_ms) {
  const found = [];
  play(trace, (at_ms, before, after) => {
    const number = Math.floor(at_ms / window_ms);
    if (found.at(-1)?.number === number) found.at(-1).after = after;
    else found.push({ number, before, after });
  });
  return found;
}

// Sums `size(before, after, name)` over the inventories that differ at the end of each window.
function eachWindow(trace, window_ms, size) {
  let [messages, bytes] = [0, 0];
  for (const { before, after } of windows(trace, window_ms)) {
    for (const name of Object.keys(after)) {
      if (changedSlots(before[name], after[name]).length === 0) continue;
      messages += 1;
      bytes += size(before[name], after[name], name);
    }
  }
  return { messages, bytes };
}

const json = inventory => JSON.stringify(inventory.map(stack => stack && { item: stack.item, count: stack.count })).length;

function protobufSize(id, slots) {
  const message = slots.map(({ slot, stack }) => ({ slot, item: stack?.item ?? '', count: stack?.count ?? 0 }));
  return GRPC + Inventory.encode({ id, slots: message }).finish().length;
}

function protobufFull(_, after, name) {
  return protobufSize(name, after.map((stack, slot) => ({ slot, stack })).filter(({ stack }) => stack));
}

const protobufChanged = (before, after, name) => protobufSize(name, changedSlots(before, after));

const SlotSchema = schema({ item: t.uint16(), count: t.uint16() }, 'SlotSchema');
const Slots = schema({ slots: t.array(SlotSchema) }, 'Slots');
const Room = schema({ inventories: t.map(Slots) }, 'Room');

function assign(target, stack) {
  target.item = stack ? itemCode(stack.item) : 0;
  target.count = stack?.count ?? 0;
}

// One patch of the room's state for each tick in which something changed; an empty slot has item 0.
function colyseus(trace, tick_ms) {
  const room = new Room();
  for (const name of new Set(trace.steps.flatMap(inventoriesOf))) {
    const slots = new Slots();
    for (const stack of starting(name)) {
      const slot = new SlotSchema();
      assign(slot, stack);
      slots.slots.push(slot);
    }
    room.inventories.set(name, slots);
  }
  const encoder = new Encoder(room);
  encoder.encodeAll();
  encoder.discardChanges();
  let [messages, bytes] = [0, 0];
  for (const { before, after } of windows(trace, tick_ms)) {
    let changes = 0;
    for (const name of Object.keys(after)) {
      for (const { slot, stack } of changedSlots(before[name], after[name])) {
        assign(room.inventories.get(name).slots[slot], stack);
        changes += 1;
      }
    }
    if (changes === 0) continue;
    messages += 1;
    bytes += colyseusFramed(encoder.encode().length);
    encoder.discardChanges();
  }
  return { messages, bytes };
}

// The least that one message for all changes of a window can have: for each changed slot its number and, with equal
// probability, any count, and if its item changed, any item. Rounded up to bytes, with the transport's framing.
function bound(found) {
  const countMax = Math.max(...world.items.map(item => item.max_stack));
  const bits = ({ stack, before }, slots) => {
    const item = stack?.item === before?.item ? 0 : Math.log2(itemsCount + 1);
    return Math.log2(slots) + Math.log2(stack ? stackMax(stack.item) : countMax) + item;
  };
  const sizes = found.map(({ before, after }) => {
    const changes = Object.keys(after).flatMap(name => {
      const slots = changedSlots(before[name], after[name]);
      return slots.map(slot => bits(slot, after[name].length));
    });
    return changes.length === 0 ? 0 : GRPC + Math.ceil(changes.reduce((sum, more) => sum + more, 0) / 8);
  });
  return { messages: sizes.filter(Boolean).length, bytes: sizes.reduce((sum, more) => sum + more, 0) };
}

function operations(trace) {
  const found = [];
  play(trace, (_, before, after) => found.push({ before, after }));
  return found;
}

const slotcast = ({ syncs, bytes }) => ({ messages: syncs, bytes: bytes + syncs * HTTP2_FRAME });

const demo = JSON.parse(readFileSync(process.argv[2], 'utf8')).traces;
const rows = traces(demo.map(row => row.name)).map((trace, index) => {
  const unframed = eachOperation(trace, (_, after) => json(after)).bytes;
  if (unframed !== demo[index].baseline_bytes) {
    throw new Error(`${trace.name}: ${unframed} bytes of JSON here, ${demo[index].baseline_bytes} in the demo: the rules differ`);
  }
  const columns = {
    'JSON, each operation': eachOperation(trace, (_, after) => GRPC + json(after)),
    'protobuf full, each operation': eachOperation(trace, protobufFull),
    'changed slots, 100 ms': eachWindow(trace, 100, protobufChanged),
    'Colyseus schema 5, 50 ms': colyseus(trace, 50),
    'Colyseus schema 5, 100 ms': colyseus(trace, 100),
    'Slotcast, full frames': slotcast(demo[index].full_frames),
    'Slotcast, echo': slotcast(demo[index].deltas),
    'Slotcast, predicted': slotcast(demo[index].predicted),
    'bound, each operation': bound(operations(trace)),
    'bound, 1 s': bound(windows(trace, 1_000)),
  };
  return { trace: trace.name, operations: trace.steps.length, columns };
});

if (process.argv.includes('--json')) {
  console.log(JSON.stringify(rows, null, 2));
} else {
  const names = Object.keys(rows[0].columns);
  console.log(`| trace | operations | ${names.join(' | ')} |`);
  console.log(`|---|---${'|---'.repeat(names.length)}|`);
  for (const { trace, operations, columns } of rows) {
    const cells = names.map(name => `${columns[name].bytes} in ${columns[name].messages}`);
    console.log(`| ${trace} | ${operations} | ${cells.join(' | ')} |`);
  }
}
