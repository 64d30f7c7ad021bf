// The script of the page that test_browser.mjs opens: a client of connect-web, which the test drives through `window.client`.
// esbuild bundles it.

import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { Follower, mutation, withHeaders } from "./follower.mjs";

const TRANSPORTS = { Connect: createConnectTransport, "gRPC-Web": createGrpcWebTransport };

class Client {
  // Connects to a server. With `credentials`, the browser sends client certificates and cookies.
  async connect({ url, protocol, useBinaryFormat = true, headers = {}, credentials = "same-origin" }) {
    const bytes = new Uint8Array(await (await fetch("descriptors.bin")).arrayBuffer());
    this.registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, bytes));
    const transport = TRANSPORTS[protocol]({
      baseUrl: url,
      useBinaryFormat,
      jsonOptions: { ignoreUnknownFields: false },
      interceptors: [withHeaders(headers)],
      fetch: (input, init) => fetch(input, { ...init, credentials }),
    });
    this.inventories = createClient(this.registry.getService("slotcast.v1.InventoryService"), transport);
  }

  get = async (inventoryId) => (await this.inventories.getInventory({ inventoryId })).inventory;

  // Calls a mutation. Returns its effect, or its error as plain values.
  async mutate(rpc, fields) {
    try {
      const { receipt } = await this.inventories[rpc](mutation(fields));
      return { revision: Number(receipt.inventories[0].revision) };
    } catch (error) {
      return this.describe(error);
    }
  }

  describe(error) {
    if (!(error instanceof ConnectError)) throw error;
    const [info] = error.findDetails(this.registry.getMessage("google.rpc.ErrorInfo"));
    const fields = error.findDetails(this.registry.getMessage("google.rpc.BadRequest")).flatMap((bad) => bad.fieldViolations);
    const { reason, metadata } = info ?? {};
    return { code: Code[error.code], message: error.message, reason, metadata, fields: fields.map(({ field }) => field) };
  }

  async follow(inventoryId, options) {
    this.follower = new Follower(this.inventories, inventoryId, options);
    await this.follower.caughtUp();
  }

  // Waits until the replica equals GetInventory. Returns the revision.
  async converge() {
    await this.follower.converge(this.get);
    return this.follower.replica.revision;
  }

  // Waits for the end of the first stream of the follower, and returns its error.
  async firstStreamEnds() {
    await this.follower.until(() => this.follower.streams[0].error, "the end of the first stream");
    return this.describe(this.follower.streams[0].error);
  }

  async receiveHeartbeats(count) {
    const wanted = this.follower.stream.heartbeats + count;
    await this.follower.until(() => this.follower.stream.heartbeats >= wanted, `${count} heartbeats`);
  }

  // Returns the kinds of the frames of each stream that was opened.
  streams() {
    return this.follower.streams.map(({ frames }) => frames);
  }

  revision() {
    return this.follower.replica.revision;
  }

  // Sends a request without a preflight, as any page can to any server. The reply cannot be read; the request must be refused.
  async sendBlindly(url, body, credentials) {
    await fetch(url, { method: "POST", mode: "no-cors", body, credentials, headers: { "content-type": "text/plain" } });
  }

  stop() {
    return this.follower.cancel();
  }
}

window.client = new Client();
for (const event of ["freeze", "resume"]) document.addEventListener(event, () => console.info(`page: ${event}`));
