// What the tests in Node share: the packages that ./test installs into .cache/node, the protos, a server, a proxy that breaks
// connections, and clients of connect-es for Node.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { WAIT_MS } from "./follower.mjs";

export const root = fileURLToPath(new URL("../../", import.meta.url));
export const packages = join(root, ".cache/node/");
export const require = createRequire(packages);

const { fromBinary, createFileRegistry } = require("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = require("@bufbuild/protobuf/wkt");
const { Code, ConnectError } = require("@connectrpc/connect");

// The parts of the standard protos that the tests read; the complete files need packages of their own.
const STANDARD_PROTOS = {
  "google_rpc.proto": `syntax = "proto3";
    package google.rpc;
    message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
    message BadRequest {
      message FieldViolation { string field = 1; string description = 2; }
      repeated FieldViolation field_violations = 1;
    }`,
  "health.proto": `syntax = "proto3";
    package grpc.health.v1;
    message HealthCheckRequest { string service = 1; }
    message HealthCheckResponse {
      enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
      ServingStatus status = 1;
    }
    service Health {
      rpc Check(HealthCheckRequest) returns (HealthCheckResponse);
      rpc Watch(HealthCheckRequest) returns (stream HealthCheckResponse);
    }`,
};

// Returns the protos as a FileDescriptorSet, in bytes: no code is generated.
export function descriptors(folder) {
  for (const [name, text] of Object.entries(STANDARD_PROTOS)) writeFileSync(join(folder, name), text);
  const names = ["slotcast/v1/service.proto", "slotcast/v1/admin.proto", ...Object.keys(STANDARD_PROTOS)];
  const out = join(folder, "descriptors.bin");
  const paths = [`-I${join(root, "proto")}`, `-I${folder}`, "--include_imports", `--descriptor_set_out=${out}`];
  execFileSync("protoc", [...paths, ...names]);
  return readFileSync(out);
}

// Returns the descriptor of a message or service by its full name.
export function schemas(bytes) {
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, bytes));
  return (name) => registry.get(name) ?? assert.fail(`the protos do not define ${name}`);
}

// What to do when the process exits, newest first.
const cleanups = [];
process.on("exit", () => cleanups.reverse().forEach((cleanup) => cleanup()));

// Creates an empty temporary folder and removes it when the process exits.
export function temporaryFolder() {
  const folder = mkdtempSync(join(tmpdir(), "slotcast-node-"));
  cleanups.push(() => rmSync(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 }));
  return folder;
}

// Runs a command of the program under test.
export function slotcast(...parameters) {
  return execFileSync(binary(), parameters, { env: environment(), encoding: "utf8" });
}

// Returns the token of a role that `slotcast dev-credentials FOLDER/dev` has created.
export function token(folder, role) {
  return readFileSync(join(folder, `dev/${role}.token`), "utf8").trim();
}

function binary() {
  return process.env.SLOTCAST_BIN ?? assert.fail("set SLOTCAST_BIN to the server to test, such as target/debug/slotcast");
}

// Without the variables of the tests, which the server would read as settings.
function environment() {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("SLOTCAST_")));
}

// `slotcast serve` on free ports. It is killed when the process exits.
export class Server {
  static async start(data, ...parameters) {
    const server = new Server();
    const listen = parameters.includes("--listen") ? [] : ["--listen", "127.0.0.1:0"];
    const command = ["serve", "--data", data, "--admin-listen", "127.0.0.1:0", ...listen, ...parameters];
    const env = { ...environment(), SLOTCAST_LOG: "warn" };
    server.process = spawn(binary(), command, { stdio: ["ignore", "pipe", "inherit"], env });
    cleanups.push(() => server.process.kill("SIGKILL"));
    server.exited = once(server.process, "exit");
    const lines = createInterface(server.process.stdout)[Symbol.asyncIterator]();
    const address = async (prefix) => {
      const timeout = once(AbortSignal.timeout(WAIT_MS), "abort").then(() => ({ value: "nothing" }));
      const { value } = await Promise.race([lines.next(), timeout]);
      assert.ok(value?.startsWith(prefix), `the server printed ${value ?? "nothing and exited"} instead of "${prefix}ADDRESS"`);
      return value.slice(prefix.length);
    };
    server.url = await address("listening on ");
    server.adminUrl = await address("admin listening on ");
    return server;
  }

  get port() {
    return Number(new URL(this.url).port);
  }

  // Returns the value of a metric without labels.
  async metric(name) {
    const text = await (await fetch(`${this.adminUrl}/metrics`)).text();
    const line = text.split("\n").find((line) => line.startsWith(`${name} `));
    assert.ok(line, `/metrics does not have ${name}`);
    return Number(line.slice(name.length + 1));
  }

  async kill() {
    this.process.kill("SIGKILL");
    await this.exited;
  }

  async terminate() {
    this.process.kill("SIGTERM");
    const late = setTimeout(() => this.process.kill("SIGKILL"), 15_000);
    const [code, signal] = await this.exited;
    clearTimeout(late);
    assert.equal(code, 0, `after SIGTERM the server ended with exit code ${code}, signal ${signal}`);
  }
}

export async function terminate(...servers) {
  await Promise.all(servers.map((server) => server.terminate()));
}

// Forwards TCP connections to a port. It closes connections that are idle for `idle_ms`, as load balancers do.
export class Proxy {
  idleClosed = 0;
  #pairs = new Set();

  static async start(port, idle_ms = 0) {
    const proxy = new Proxy();
    proxy.listener = net.createServer((client) => proxy.#forward(client, net.connect(port, "127.0.0.1"), idle_ms));
    proxy.listener.listen(0, "127.0.0.1");
    await once(proxy.listener, "listening");
    return proxy;
  }

  #forward(client, upstream, idle_ms) {
    const pair = [client, upstream];
    this.#pairs.add(pair);
    const close = () => {
      this.#pairs.delete(pair);
      for (const socket of pair) socket.destroy();
    };
    for (const socket of pair) socket.on("error", close).on("close", close);
    client.pipe(upstream).pipe(client);
    // Reads and writes reset the timeout of a socket, so the client's socket sees both directions.
    client.setTimeout(idle_ms, () => {
      this.idleClosed += 1;
      close();
    });
  }

  // Returns the URL of a server behind the proxy.
  url(server) {
    const url = new URL(server.url);
    url.port = this.listener.address().port;
    return url.origin;
  }

  // Closes all connections.
  cut() {
    for (const [client, upstream] of this.#pairs) {
      client.destroy();
      upstream.destroy();
    }
  }

  close() {
    this.listener.close();
    this.cut();
  }
}

// Waits for a call that must fail with a code and, unless `reason` is undefined, with a google.rpc.ErrorInfo that has at least
// this metadata. Returns the error.
export async function expectError(schema, call, code, reason, metadata = {}) {
  const error = await call.then(
    () => assert.fail(`the call succeeded instead of failing with ${Code[code]} ${reason}`),
    (error) => error,
  );
  if (!(error instanceof ConnectError)) throw error;
  assert.equal(Code[error.code], Code[code], `expected ${Code[code]}, got: ${error.message}`);
  if (reason === undefined) return error;
  const infos = error.findDetails(schema("google.rpc.ErrorInfo"));
  assert.equal(infos.length, 1, `${infos.length} google.rpc.ErrorInfo in the details of: ${error.message}`);
  const [info] = infos;
  assert.deepEqual([info.domain, info.reason], ["slotcast", reason], `domain and reason of: ${error.message}`);
  for (const [name, value] of Object.entries(metadata)) {
    assert.equal(info.metadata[name], value, `metadata ${name} of: ${error.message}`);
  }
  return error;
}

// Runs checks, which are pairs of a title and a function, in order. A function may return a note about what it measured.
export async function run(checks, limit_s) {
  const watchdog = setTimeout(() => {
    console.error(`FAILED: the checks take longer than ${limit_s} s`);
    process.exit(1);
  }, limit_s * 1_000);
  const began = Date.now();
  for (const [title, check] of checks) {
    const started = Date.now();
    try {
      const note = await check();
      console.log(`ok ${title}${note ? ` (${note})` : ""}: ${((Date.now() - started) / 1_000).toFixed(1)} s`);
    } catch (error) {
      console.error(`FAILED ${title}`);
      console.error(error);
      process.exit(1);
    }
  }
  clearTimeout(watchdog);
  console.log(`ok, ${checks.length} checks in ${((Date.now() - began) / 1_000).toFixed(1)} s`);
}
