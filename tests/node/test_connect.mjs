// Conformance of the service with the clients of connect-es in Node: the protocols Connect, gRPC-Web and gRPC, over HTTP/1.1 and
// HTTP/2, as JSON and binary, in plaintext and over TLS.
//
//     SLOTCAST_BIN=target/debug/slotcast node tests/node/test_connect.mjs
//
// ./test installs the packages into .cache/node. Needs protoc.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as fixture from "./fixture.mjs";
import { expectError, Proxy, Server, terminate } from "./fixture.mjs";
import { Follower, mutation, poll, withHeaders } from "./follower.mjs";

const { toJson } = fixture.require("@bufbuild/protobuf");
const { Code, createClient } = fixture.require("@connectrpc/connect");
const node = fixture.require("@connectrpc/connect-node");

const STREAMS = 50;
const TRANSPORTS = {
  Connect: node.createConnectTransport,
  "gRPC-Web": node.createGrpcWebTransport,
  gRPC: node.createGrpcTransport,
};
// The header with the deadline of a call, 1 ms.
const DEADLINES = {
  Connect: { "connect-timeout-ms": "1" },
  "gRPC-Web": { "grpc-timeout": "1m" },
  gRPC: { "grpc-timeout": "1m" },
};
const ATTEMPTS_MAX = 1_000;

const rows = [
  { protocol: "Connect", httpVersion: "1.1", useBinaryFormat: false },
  { protocol: "Connect", httpVersion: "1.1", useBinaryFormat: true },
  { protocol: "Connect", httpVersion: "2", useBinaryFormat: false },
  { protocol: "Connect", httpVersion: "2", useBinaryFormat: true },
  { protocol: "gRPC-Web", httpVersion: "1.1", useBinaryFormat: true },
  { protocol: "gRPC-Web", httpVersion: "2", useBinaryFormat: true },
  { protocol: "gRPC", httpVersion: "2", useBinaryFormat: true },
];

const folder = fixture.temporaryFolder();
const schema = fixture.schemas(fixture.descriptors(folder));

// The clients of one row of the matrix, with a server in plaintext or with TLS.
class Clients {
  constructor(server, row, { nodeOptions, token } = {}) {
    Object.assign(this, { server, row, nodeOptions });
    this.id = `${row.protocol}-${row.httpVersion}-${row.useBinaryFormat ? "binary" : "json"}`.toLowerCase();
    this.headers = token ? { authorization: `Bearer ${token}` } : { "slotcast-caller": this.id };
    this.client = this.connect(server.url);
  }

  connect(baseUrl, options = {}, service = "slotcast.v1.InventoryService") {
    const { protocol, httpVersion, useBinaryFormat } = this.row;
    const transport = TRANSPORTS[protocol]({
      baseUrl,
      httpVersion,
      useBinaryFormat,
      nodeOptions: this.nodeOptions,
      jsonOptions: { ignoreUnknownFields: false },
      interceptors: [withHeaders(this.headers)],
      ...options,
    });
    return createClient(schema(service), transport);
  }

  get = async (inventoryId) => (await this.client.getInventory({ inventoryId })).inventory;

  async create(name, layout = "chest") {
    const inventoryId = `${this.id}-${name}`;
    await this.client.createInventory(mutation({ create: { inventoryId, layout } }));
    return inventoryId;
  }

  add(inventoryId, count, item = "stone") {
    return this.client.addItem(mutation({ add: { inventoryId, stack: { item, count } } }));
  }

  // Sets the first slots of an inventory to a stack, in one commit.
  fill(client, inventoryId, slots, stack) {
    const set = (_, slot) => ({ operation: { case: "set", value: { inventoryId, at: { slot }, stack } } });
    return client.transact(mutation({ operations: Array.from({ length: slots }, set) }));
  }
}

async function mutationsAreApplied(clients) {
  const inventoryId = await clients.create("mutate");
  const request = mutation({ add: { inventoryId, stack: { item: "stone", count: 100 } } });
  const [first, second] = [await clients.client.addItem(request), await clients.client.addItem(request)];
  assert.deepEqual([first.added, first.receipt.replayed, second.receipt.replayed], [100, false, true]);
  const { inventories } = first.receipt;
  assert.deepEqual([inventories[0].inventoryId, inventories[0].revision], [inventoryId, 2n]);
  assert.deepEqual(second.receipt.inventories, inventories, "a retry returns the stored receipt");
  const { version, stacks } = await clients.get(inventoryId);
  assert.deepEqual(version, inventories[0], "GetInventory returns the version of the receipt");
  assert.deepEqual(stacks.map(({ slot, stack }) => [slot, stack.item, stack.count]), [[0, "stone", 64], [1, "stone", 36]]);
}

async function errorsHaveDetails(clients) {
  const inventoryId = await clients.create("poor");
  await clients.add(inventoryId, 2, "coal");
  const remove = mutation({ remove: { inventoryId, item: { item: "coal", count: 3 } } });
  const amounts = { inventory_id: inventoryId, wanted: "3", held: "2" };
  const error = await expectError(schema, clients.client.removeItem(remove), Code.FailedPrecondition, "NOT_ENOUGH", amounts);
  const zinc = await expectError(schema, clients.add(inventoryId, 1, "zinc"), Code.InvalidArgument, "UNKNOWN_ITEM");
  const fields = zinc.findDetails(schema("google.rpc.BadRequest")).flatMap(({ fieldViolations }) => fieldViolations);
  assert.deepEqual(fields.map(({ field }) => field), ["add.stack.item"]);
  if (clients.row.protocol === "Connect") {
    // Connect also has each detail as JSON, for people who read a reply.
    const info = error.details.find(({ type }) => type === "google.rpc.ErrorInfo");
    const expected = toJson(schema("google.rpc.ErrorInfo"), error.findDetails(schema("google.rpc.ErrorInfo"))[0]);
    assert.deepEqual(info.debug, expected, "debug is the detail as JSON");
  }
  assert.equal((await clients.get(inventoryId)).version.revision, 2n, "a refused mutation changes nothing");
  const none = clients.client.subscribeInventory({ inventories: [] })[Symbol.asyncIterator]().next();
  await expectError(schema, none, Code.InvalidArgument, "INVALID_ARGUMENT");
}

async function framesAreApplied(clients) {
  const inventoryId = await clients.create("follow", "player");
  const follower = new Follower(clients.client, inventoryId);
  await follower.converge(clients.get);
  const attributes = Buffer.from("sharp");
  await clients.add(inventoryId, 70);
  await follower.converge(clients.get);
  const set = { inventoryId, at: { slot: 9 }, stack: { item: "coal", count: 3, attributes } };
  await clients.client.setSlot(mutation({ set }));
  await clients.client.moveItem(mutation({ move: { inventoryId, from: { slot: 0, count: 10 }, to: { slot: 20 } } }));
  await clients.client.removeItem(mutation({ remove: { inventoryId, item: { item: "stone", count: 6 } } }));
  await follower.converge(clients.get);
  await clients.fill(clients.client, inventoryId, 15, { item: "dirt", count: 1 });
  await follower.converge(clients.get);
  const { full, delta } = follower.replica.frames;
  assert.ok(full >= 2 && delta >= 2, `expected at least 2 full states and 2 deltas, got ${full} and ${delta}`);
  await clients.client.deleteInventory(mutation({ delete: { inventoryId } }));
  await follower.until(() => follower.replica.frames.absent === 1, "the deletion");
  assert.equal(follower.streams.length, 1, `the stream broke: ${follower.streams[0].error}`);
  await follower.cancel();
  return `${full} full, ${delta} deltas`;
}

async function aReaderResumes(clients) {
  const inventoryId = await clients.create("resume");
  await clients.add(inventoryId, 70);
  const proxy = await Proxy.start(clients.server.port);
  const follower = new Follower(clients.connect(proxy.url(clients.server)), inventoryId);
  await follower.converge(clients.get);
  proxy.cut();
  await follower.until(() => follower.streams[0].error, "the end of the stream whose connection was closed");
  await clients.add(inventoryId, 1, "coal");
  await follower.converge(clients.get);
  const [first, second] = [follower.streams[0].frames, follower.streams.slice(1).flatMap(({ frames }) => frames)];
  assert.deepEqual([first, second], [["full"], ["delta"]], "a full state, then only what the reader was missing");
  await follower.cancel();
  proxy.close();
}

async function messagesAreCompressed(clients) {
  const inventoryId = await clients.create("gzip");
  const accept = { acceptCompression: [node.compressionGzip] };
  const client = clients.connect(clients.server.url, { ...accept, sendCompression: node.compressionGzip, compressMinBytes: 0 });
  const large = { item: "dirt", count: 1, attributes: Buffer.alloc(1_000) };
  if (clients.row.protocol !== "Connect") {
    // Only Connect has compression. The other protocols name what they accept: nothing.
    return void (await expectError(schema, clients.fill(client, inventoryId, 27, large), Code.Unimplemented));
  }
  await clients.fill(client, inventoryId, 27, large);
  let encoding;
  const options = { onHeader: (headers) => (encoding = headers.get("content-encoding")) };
  const { inventory } = await client.getInventory({ inventoryId }, options);
  assert.equal(encoding, "gzip", "content-encoding of a large reply to a client that accepts gzip");
  assert.deepEqual(inventory, await clients.get(inventoryId));
  const onHeader = (headers) => (encoding = headers.get("connect-content-encoding"));
  const follower = new Follower(client, inventoryId, { onHeader });
  await follower.converge(clients.get);
  assert.equal(encoding, "gzip", "connect-content-encoding of a stream to a client that accepts gzip");
  await follower.cancel();
  await clients.connect(clients.server.url, { acceptCompression: [] }).getInventory({ inventoryId }, options);
  assert.equal(encoding, null, "content-encoding for a client that does not accept gzip");
}

async function deadlinesEndCalls(clients) {
  const inventoryId = await clients.create("deadline");
  // Set as a header, the deadline is known to the server only. Most commits take longer than 1 ms.
  const headers = DEADLINES[clients.row.protocol];
  const request = () => mutation({ add: { inventoryId, stack: { item: "stone", count: 1 } } });
  let [attempts, late] = [0, undefined];
  for (; !late && attempts < ATTEMPTS_MAX; attempts++) {
    const sent = request();
    late = await clients.client.addItem(sent, { headers }).then(() => undefined, (error) => ({ sent, error }));
  }
  assert.ok(late, `none of ${attempts} mutations exceeded a deadline of 1 ms`);
  await expectError(schema, Promise.reject(late.error), Code.DeadlineExceeded, "DEADLINE_EXCEEDED");
  const { receipt } = await clients.client.addItem(late.sent);
  assert.equal(receipt.inventories[0].revision, BigInt(attempts + 1), "a retry with the same key is applied once");
  return `attempt ${attempts}`;
}

async function cancellationFreesStreams(clients) {
  const inventoryId = await clients.create("cancel");
  const followers = Array.from({ length: STREAMS }, () => new Follower(clients.client, inventoryId));
  await Promise.all(followers.map((follower) => follower.caughtUp()));
  let open;
  const hasOpen = (expected) => async () => (open = await clients.server.metric("slotcast_streams")) === expected;
  await poll(hasOpen(STREAMS), () => `expected slotcast_streams to be ${STREAMS}, got ${open}`);
  await Promise.all(followers.map((follower) => follower.cancel()));
  await poll(hasOpen(0), () => `after ${STREAMS} streams were cancelled, slotcast_streams is ${open}`);
  await clients.add(inventoryId, 1);
  return `${STREAMS} streams`;
}

async function allServicesAnswer(clients) {
  const health = clients.connect(clients.server.url, {}, "grpc.health.v1.Health");
  assert.equal((await health.check({ service: "" })).status, 1, "SERVING");
  const watch = async () => {
    for await (const { status } of health.watch({ service: "" })) {
      return status;
    }
  };
  if (clients.row.protocol === "gRPC") {
    assert.equal(await watch(), 1, "SERVING");
  } else {
    await assert.rejects(watch(), /415/, "Health.Watch needs gRPC");
  }
  const admin = clients.connect(clients.server.url, {}, "slotcast.v1.AdminService");
  const { rollout } = await admin.getRollout({});
  assert.equal(rollout.deltaPercent, 100);
  await expectError(schema, admin.updateRollout({ reason: "test", heartbeatMs: 1 }), Code.InvalidArgument, "INVALID_ARGUMENT");
}

async function tokensAreRequired(clients) {
  const inventoryId = await clients.create("authentication");
  const caller = (token) => new Clients(clients.server, clients.row, { nodeOptions: clients.nodeOptions, token });
  const nobody = caller().client;
  await expectError(schema, nobody.getInventory({ inventoryId }), Code.Unauthenticated, "TOKEN_MISSING");
  const stream = nobody.subscribeInventory({ inventories: [{ inventoryId }] })[Symbol.asyncIterator]().next();
  await expectError(schema, stream, Code.Unauthenticated, "TOKEN_MISSING");
  const player = caller(fixture.token(folder, "player"));
  await expectError(schema, player.add(inventoryId, 1), Code.PermissionDenied, "ROLE_TOO_LOW");
  const admin = clients.connect(clients.server.url, {}, "slotcast.v1.AdminService");
  await expectError(schema, admin.getRollout({}), Code.PermissionDenied, "ROLE_TOO_LOW");
}

const title = ({ protocol, httpVersion, useBinaryFormat }, tls) =>
  `${protocol}, HTTP/${httpVersion}, ${useBinaryFormat ? "binary" : "JSON"}${tls ? ", TLS" : ""}`;

const COMMON = [
  ["a mutation is applied once", mutationsAreApplied],
  ["errors have their code, reason, metadata and details", errorsHaveDetails],
  ["frames are applied, and every digest is right", framesAreApplied],
  ["a reader whose connection broke resumes with a delta", aReaderResumes],
];
const PLAINTEXT = [
  ["messages are compressed with gzip", messagesAreCompressed],
  ["deadlines end calls", deadlinesEndCalls],
  ["cancellation frees streams", cancellationFreesStreams],
  ["AdminService and Health answer", allServicesAnswer],
];
const TLS = [["a call without a token or with a low role fails", tokensAreRequired]];

const plaintext = await Server.start(join(folder, "plaintext"));
fixture.slotcast("dev-credentials", join(folder, "dev"));
const tls = await Server.start(join(folder, "tls"), "--config", join(folder, "dev/slotcast.toml"), "--listen", "127.0.0.1:0");
const secure = { nodeOptions: { ca: readFileSync(join(folder, "dev/ca.pem")) }, token: fixture.token(folder, "service") };
const checksOf = (row, server, options, checks) => {
  const clients = new Clients(server, row, options);
  return checks.map(([what, check]) => [`${title(row, server === tls)}: ${what}`, () => check(clients)]);
};
await fixture.run([
  ...rows.flatMap((row) => checksOf(row, plaintext, {}, [...COMMON, ...PLAINTEXT])),
  ...rows.flatMap((row) => checksOf(row, tls, secure, [...COMMON, ...TLS])),
  ["SIGTERM ends the servers", () => terminate(plaintext, tls)],
], 240);
process.exit(0);
