// Conformance of the service with pages in Chromium that use connect-web: Connect and gRPC-Web, from another origin.
//
//     SLOTCAST_BIN=target/debug/slotcast node tests/node/test_browser.mjs
//
// ./test installs the packages into .cache/node. Needs chromium, openssl and protoc.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { createInterface } from "node:readline";
import * as fixture from "./fixture.mjs";
import { Proxy, Server, terminate } from "./fixture.mjs";
import { mutation, withHeaders } from "./follower.mjs";

const { createClient } = fixture.require("@connectrpc/connect");
const { createConnectTransport } = fixture.require("@connectrpc/connect-node");
const esbuild = fixture.require("esbuild");
const { chromium } = fixture.require("playwright-core");

// A browser opens at most 6 connections to one host over HTTP/1.1.
const [TABS_HTTP1, TABS_HTTP2] = [5, 6];
const [IDLE_MS, HEARTBEAT_MS] = [1_000, 200];
const CERTIFICATE_NAME = "spiffe://game.example/server";

const folder = fixture.temporaryFolder();
const descriptors = fixture.descriptors(folder);
const schema = fixture.schemas(descriptors);

// Serves the page. Each instance has its own port and thus is another origin.
class PageServer {
  static async start(script) {
    const files = {
      "/": ["text/html", '<!doctype html><meta charset="utf-8"><title>client</title><script src="page.js"></script>'],
      "/page.js": ["text/javascript", script],
      "/descriptors.bin": ["application/octet-stream", descriptors],
    };
    const server = createServer((request, response) => {
      const [type, content] = files[request.url] ?? [];
      response.writeHead(content ? 200 : 404, { "content-type": type ?? "text/plain" }).end(content);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return `http://127.0.0.1:${server.address().port}`;
  }
}

async function bundle() {
  const { outputFiles } = await esbuild.build({
    entryPoints: [join(fixture.root, "tests/node/page.mjs")],
    bundle: true,
    write: false,
    format: "iife",
    nodePaths: [join(fixture.packages, "node_modules")],
  });
  return outputFiles[0].text;
}

const CHROMIUM = execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim();
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
FLAGS.push("--disable-component-update", "--disable-sync");

// Runs a check in a browser that Playwright only connects to. In one that it starts, pages always seem to have the focus, and
// such a page cannot be frozen.
async function inPlainBrowser(check) {
  const flags = [...FLAGS, "--headless", `--user-data-dir=${join(folder, "profile")}`, "--remote-debugging-port=0"];
  const started = spawn(CHROMIUM, [...flags, "about:blank"], { stdio: ["ignore", "ignore", "pipe"] });
  const exited = once(started, "exit");
  try {
    let endpoint;
    for await (const line of createInterface(started.stderr)) {
      [, endpoint] = /^DevTools listening on (.*)$/.exec(line) ?? [];
      if (endpoint) break;
    }
    const connected = await chromium.connectOverCDP(endpoint ?? assert.fail("chromium has no DevTools"), { noDefaults: true });
    return await check(connected.contexts()[0]);
  } finally {
    started.kill("SIGKILL");
    await exited;
  }
}

// A page that is connected to a server.
class Tab {
  static async open(context, pageUrl, options) {
    const tab = new Tab();
    tab.page = await context.newPage();
    tab.page.on("pageerror", (error) => console.error(`error in the page: ${error.message}`));
    await tab.page.goto(pageUrl);
    await tab.call("connect", options);
    return tab;
  }

  // Calls a method of the client in the page.
  call(method, ...parameters) {
    return this.page.evaluate(([method, parameters]) => window.client[method](...parameters), [method, parameters]);
  }

  add(inventoryId, count, item = "stone") {
    return this.call("mutate", "addItem", { add: { inventoryId, stack: { item, count } } });
  }
}

// A client in Node, which prepares inventories and reads them.
function nodeClient(url, { service = "slotcast.v1.InventoryService", headers = {}, ...nodeOptions } = {}) {
  const options = { baseUrl: url, httpVersion: "2", nodeOptions, interceptors: [withHeaders(headers)] };
  return createClient(schema(service), createConnectTransport(options));
}

async function create(client, inventoryId) {
  await client.createInventory(mutation({ create: { inventoryId, layout: "chest" } }));
  return inventoryId;
}

const add = (client, inventoryId, count = 1, item = "stone") =>
  client.addItem(mutation({ add: { inventoryId, stack: { item, count } } }));

const revision = async (client, inventoryId) => Number((await client.getInventory({ inventoryId })).inventory.version.revision);

const bearer = () => ({ authorization: `Bearer ${fixture.token(folder, "service")}` });

// A client certificate that the server maps to a service.
function clientCertificate() {
  const [key, certificate, settings] = ["client-key.pem", "client.pem", "openssl.cnf"].map((name) => join(folder, name));
  writeFileSync(settings, `[req]\ndistinguished_name = name\nx509_extensions = client\n[name]\n[client]
basicConstraints = critical, CA:FALSE\nextendedKeyUsage = clientAuth\nsubjectAltName = URI:${CERTIFICATE_NAME}\n`);
  execFileSync("openssl", [
    ...["req", "-x509", "-config", settings, "-subj", "/CN=client", "-days", "1", "-nodes"],
    ...["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", key, "-out", certificate],
    ...["-CA", join(folder, "dev/ca.pem"), "-CAkey", join(folder, "dev/ca-key.pem")],
  ], { stdio: ["ignore", "ignore", "pipe"] });
  return { key, certificate };
}

// Starts a server with TLS. A server with mutual TLS requires client certificates.
function startTls(origins, isMutual) {
  const config = join(folder, "dev/slotcast.toml");
  const parameters = ["--listen", "127.0.0.1:0", "--config", config, "--web-origins", origins];
  parameters.push("--tls-client-ca", join(folder, "dev/ca.pem"), "--tls-client-certificates", isMutual ? "required" : "optional");
  return Server.start(join(folder, isMutual ? "mutual" : "tls"), ...parameters);
}

const script = await bundle();
const [allowed, refused] = [await PageServer.start(script), await PageServer.start(script)];
const plaintext = await Server.start(join(folder, "plaintext"), "--web-origins", `${allowed},https://game.example`);
fixture.slotcast("dev-credentials", join(folder, "dev"));
const identity = `\n[[identity.certificates]]\nsan = "${CERTIFICATE_NAME}"\nrole = "service"\nname = "game-server"\n`;
appendFileSync(join(folder, "dev/slotcast.toml"), identity);
const tls = await startTls(allowed, false);
const mutual = await startTls(allowed, true);
const { key, certificate } = clientCertificate();
const ca = readFileSync(join(folder, "dev/ca.pem"));
const inventories = nodeClient(plaintext.url, { headers: { "slotcast-caller": "node" } });
const secureInventories = nodeClient(tls.url, { headers: bearer(), ca });
const mutualInventories = nodeClient(mutual.url, { ca, key: readFileSync(key), cert: readFileSync(certificate) });
const browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS });

// Runs a check in a new browser context, which has its own connections and no cached preflights.
const inContext = (check, options = {}) => async () => {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, ...options });
  try {
    return await check(context);
  } finally {
    await context.close();
  }
};

const oneClient = (protocol, useBinaryFormat) => async (context) => {
  const id = await create(inventories, `page-${protocol}-${useBinaryFormat ? "binary" : "json"}`.toLowerCase());
  const proxy = await Proxy.start(plaintext.port);
  const options = { protocol, useBinaryFormat, headers: { "slotcast-caller": "page" }, url: proxy.url(plaintext) };
  const tab = await Tab.open(context, allowed, options);

  assert.deepEqual(await tab.add(id, 2, "coal"), { revision: 2 }, "a mutation from a page");
  const remove = { remove: { inventoryId: id, item: { item: "coal", count: 3 } } };
  const error = await tab.call("mutate", "removeItem", remove);
  assert.deepEqual([error.code, error.reason], ["FailedPrecondition", "NOT_ENOUGH"], error.message);
  const { inventory_id, wanted, held } = error.metadata;
  assert.deepEqual([inventory_id, wanted, held], [id, "3", "2"], "metadata of the error");
  const zinc = await tab.add(id, 1, "zinc");
  assert.deepEqual([zinc.code, zinc.reason, zinc.fields], ["InvalidArgument", "UNKNOWN_ITEM", ["add.stack.item"]], zinc.message);

  await tab.call("follow", id);
  await tab.add(id, 70);
  assert.equal(await tab.call("converge"), 3);
  proxy.cut();
  await tab.call("firstStreamEnds");
  await add(inventories, id);
  assert.equal(await tab.call("converge"), 4);
  const [first, ...others] = await tab.call("streams");
  assert.deepEqual([first, others.flat()], [["full", "delta"], ["delta"]], "a full state, then only what the page was missing");
  await tab.call("stop");
  proxy.close();
};

const manyTabs = (server, client, tabs, headers, protocolName) => async (context) => {
  const id = await create(client, `tabs-${protocolName.replace("/", "-")}`);
  const open = Array.from({ length: tabs }, () => Tab.open(context, allowed, { url: server.url, protocol: "Connect", headers }));
  const opened = await Promise.all(open);
  const used = new Set();
  const session = await context.newCDPSession(opened[0].page);
  await session.send("Network.enable");
  session.on("Network.responseReceived", ({ response }) => response.url.startsWith(server.url) && used.add(response.protocol));
  await Promise.all(opened.map((tab) => tab.call("follow", id)));
  assert.deepEqual(await opened[0].add(id, 5), { revision: 2 }, `a mutation while ${tabs} tabs follow`);
  const reached = await Promise.all(opened.map((tab) => tab.call("converge")));
  assert.deepEqual(reached, Array(tabs).fill(2), "each tab has the mutation");
  assert.deepEqual([...used], [protocolName], "protocol of the replies according to the browser");
  return `${tabs} streams and a mutation`;
};

// Changes the interval of heartbeats while a check runs.
async function withHeartbeats(heartbeatMs, check) {
  const admin = nodeClient(plaintext.url, { service: "slotcast.v1.AdminService" });
  const { rollout } = await admin.getRollout({});
  await admin.updateRollout({ reason: "a test begins", heartbeatMs });
  const result = await check();
  await admin.updateRollout({ reason: "a test ends", heartbeatMs: rollout.heartbeatMs });
  return result;
}

async function heartbeatsKeepStreamsOpen(context) {
  const id = await create(inventories, "idle");
  const proxy = await Proxy.start(plaintext.port, IDLE_MS);
  const tab = await Tab.open(context, allowed, { url: proxy.url(plaintext), protocol: "Connect" });
  await tab.call("follow", id);
  await tab.call("firstStreamEnds");
  await tab.call("stop");
  assert.ok(proxy.idleClosed > 0, "without heartbeats, the proxy should close the idle connection");
  const heartbeats = (3 * IDLE_MS) / HEARTBEAT_MS;
  const elapsed_ms = await withHeartbeats(HEARTBEAT_MS, async () => {
    await tab.call("follow", id);
    const began = Date.now();
    await tab.call("receiveHeartbeats", heartbeats);
    return Date.now() - began;
  });
  assert.ok(elapsed_ms > 2 * IDLE_MS, `${heartbeats} heartbeats within ${elapsed_ms} ms`);
  await add(inventories, id);
  assert.equal(await tab.call("converge"), 2);
  assert.equal((await tab.call("streams")).length, 1, "the stream was closed in spite of its heartbeats");
  await tab.call("stop");
  proxy.close();
  return `${heartbeats} heartbeats in ${elapsed_ms} ms, idle timeout ${IDLE_MS} ms`;
}

// Chromium delivers nothing more on a stream of a page that was frozen, and reports no error. So a page has to reconnect when
// it receives no heartbeats.
async function aFrozenTabConverges(context) {
  const id = await create(inventories, "frozen");
  const tab = await Tab.open(context, allowed, { url: plaintext.url, protocol: "Connect" });
  await tab.call("follow", id, { silence_ms: 5 * HEARTBEAT_MS });
  const session = await context.newCDPSession(tab.page);
  const lifecycle = async (state, event) => {
    const seen = tab.page.waitForEvent("console", { predicate: (message) => message.text() === `page: ${event}` });
    await session.send("Page.setWebLifecycleState", { state });
    await seen;
  };
  await lifecycle("frozen", "freeze");
  for (let count = 0; count < 20; count++) await add(inventories, id);
  assert.equal(await tab.call("revision"), 1, "a frozen page reads nothing");
  await lifecycle("active", "resume");
  assert.equal(await tab.call("converge"), 21);
  return `${(await tab.call("streams")).length} streams`;
}

const aRestartIsSurvived = (stop) => async (context) => {
  const data = join(folder, `restart-${stop}`);
  const parameters = ["--web-origins", allowed];
  const first = await Server.start(data, ...parameters);
  const client = () => nodeClient(first.url, { headers: { "slotcast-caller": "node" } });
  const id = await create(client(), `restart-${stop}`);
  const tab = await Tab.open(context, allowed, { url: first.url, protocol: "Connect" });
  await tab.call("follow", id);
  await add(client(), id, 70);
  assert.equal(await tab.call("converge"), 2);
  const ended = tab.call("firstStreamEnds");
  await first[stop]();
  const error = await ended;
  if (stop === "terminate") assert.deepEqual([error.code, error.reason], ["Unavailable", "DRAINING"], error.message);
  const second = await Server.start(data, ...parameters, "--listen", `127.0.0.1:${first.port}`);
  await add(client(), id);
  assert.equal(await tab.call("converge"), 3);
  const frames = (await tab.call("streams")).flat();
  assert.deepEqual(frames, ["full", "delta", "delta"], "after the restart only what the page was missing");
  await second.terminate();
};

// A page whose origin is not allowed must neither read nor change anything.
const strangersGetNothing = (server, client) => async (context) => {
  const id = await create(client, "stranger");
  for (const protocol of ["Connect", "gRPC-Web"]) {
    for (const headers of [{}, bearer()]) {
      const tab = await Tab.open(context, refused, { url: server.url, protocol, headers, credentials: "include" });
      const error = await tab.add(id, 1);
      // The browser hides the reply from the page, so that there is neither a status nor details.
      assert.deepEqual([error.code, error.reason], ["Unknown", undefined], `${protocol}: ${error.message ?? "succeeded"}`);
      assert.match(error.message, /Failed to fetch/);
      await assert.rejects(tab.call("get", id), /Failed to fetch/, `${protocol}: GetInventory from a page of another origin`);
      const body = JSON.stringify(mutation({ add: { inventoryId: id, stack: { item: "stone", count: 1 } } }));
      const url = `${server.url}/slotcast.v1.InventoryService/AddItem`;
      const [reply] = await Promise.all([tab.page.waitForResponse(url), tab.call("sendBlindly", url, body, "include")]);
      assert.equal(reply.status(), 403, "HTTP status of a request without a preflight");
    }
  }
  assert.equal(await revision(client, id), 1, "a page whose origin is not allowed has changed the inventory");
};

async function certificatesDoNotAuthenticatePages(context) {
  const id = await create(mutualInventories, "certificate");
  for (const protocol of ["Connect", "gRPC-Web"]) {
    const options = { url: mutual.url, protocol };
    const anonymous = await Tab.open(context, allowed, options);
    const error = await anonymous.add(id, 1);
    assert.deepEqual([error.code, error.reason], ["Unauthenticated", "TOKEN_MISSING"], `${protocol}: ${error.message ?? "succeeded"}`);
    const before = await revision(mutualInventories, id);
    const tab = await Tab.open(context, allowed, { ...options, headers: bearer() });
    assert.deepEqual(await tab.add(id, 1), { revision: before + 1 }, `${protocol} with a token`);
  }
  const withoutCertificate = await browser.newContext({ ignoreHTTPSErrors: true });
  const tab = await Tab.open(withoutCertificate, allowed, { url: mutual.url, protocol: "Connect", headers: bearer() });
  const error = await tab.add(id, 1);
  assert.match(error.message ?? "succeeded", /Failed to fetch/, "without a certificate, the handshake should fail");
  await withoutCertificate.close();
}

const certificates = { clientCertificates: [{ origin: mutual.url, certPath: certificate, keyPath: key }] };
await fixture.run([
  ...[["Connect", false], ["Connect", true], ["gRPC-Web", true]].map(([protocol, useBinaryFormat]) => [
    `${protocol}, ${useBinaryFormat ? "binary" : "JSON"}: a page mutates, reads errors, follows, and resumes`,
    inContext(oneClient(protocol, useBinaryFormat)),
  ]),
  [
    "tabs share the connections of HTTP/1.1",
    inContext(manyTabs(plaintext, inventories, TABS_HTTP1, { "slotcast-caller": "page" }, "http/1.1")),
  ],
  ["tabs share a connection of HTTP/2", inContext(manyTabs(tls, secureInventories, TABS_HTTP2, bearer(), "h2"))],
  ["heartbeats keep a stream open through a proxy that closes idle connections", inContext(heartbeatsKeepStreamsOpen)],
  ["a frozen tab converges when it is resumed", () => withHeartbeats(HEARTBEAT_MS, () => inPlainBrowser(aFrozenTabConverges))],
  ["a page follows across a restart", inContext(aRestartIsSurvived("terminate"))],
  ["a page follows across a crash", inContext(aRestartIsSurvived("kill"))],
  ["a page whose origin is not allowed gets nothing", inContext(strangersGetNothing(tls, secureInventories))],
  [
    "a page whose origin is not allowed gets nothing, with a client certificate",
    inContext(strangersGetNothing(mutual, mutualInventories), certificates),
  ],
  ["a client certificate does not authenticate a page", inContext(certificatesDoNotAuthenticatePages, certificates)],
  ["SIGTERM ends the servers", () => terminate(plaintext, tls, mutual)],
], 240);
await browser.close();
process.exit(0);
