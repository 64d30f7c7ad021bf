// What clients of connect-es share in Node and in browsers: mutations, headers, and a reader that follows one inventory.

import { check, Replica } from "./replica.mjs";

export const WAIT_MS = 10_000;
const RECONNECT_MS = 20;
// INVALID_ARGUMENT, PERMISSION_DENIED, UNIMPLEMENTED, UNAUTHENTICATED: reconnecting would not help.
const PERMANENT = [3, 7, 12, 16];

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Calls `done` until it returns something truthy, which is returned.
export async function poll(done, what, wait_ms = WAIT_MS) {
  const deadline = Date.now() + wait_ms;
  for (;;) {
    const result = await done();
    if (result) return result;
    check(Date.now() < deadline, `${typeof what === "function" ? what() : what}: not within ${wait_ms} ms`);
    await pause(10);
  }
}

// Fields of a mutation: a new idempotency key, and the operation.
export function mutation(fields) {
  return { context: { idempotencyKey: crypto.randomUUID() }, ...fields };
}

// Returns an interceptor that sends headers with each call.
export const withHeaders = (headers) => (next) => (request) => {
  for (const [name, value] of Object.entries(headers)) request.header.set(name, value);
  return next(request);
};

// A reader of one inventory. It reconnects with its cursor whenever its stream breaks or is silent for too long, and verifies
// every frame and heartbeat.
export class Follower {
  replica = new Replica();
  // One entry for each stream that was opened, oldest first: the kinds of its frames, the number of its heartbeats, and the
  // error that ended it.
  streams = [];
  #aborted = new AbortController();

  // `client` is a client of InventoryService; `options` are passed to SubscribeInventory. With `silence_ms`, a stream that sends
  // no message for this time is given up.
  constructor(client, inventoryId, { silence_ms = 0, ...options } = {}) {
    [this.inventoryId, this.silence_ms] = [inventoryId, silence_ms];
    this.finished = this.#follow(client, options);
  }

  get stream() {
    return this.streams.at(-1);
  }

  async #follow(client, options) {
    while (!this.#aborted.signal.aborted && !this.failure) {
      const stream = { frames: [], heartbeats: 0, caughtUp: false, error: undefined };
      this.streams.push(stream);
      const silence = new AbortController();
      let timer = this.#expectMessage(silence);
      try {
        const request = { inventories: [{ inventoryId: this.inventoryId, resume: this.#cursor() }] };
        const signal = AbortSignal.any([this.#aborted.signal, silence.signal]);
        for await (const message of client.subscribeInventory(request, { ...options, signal })) {
          clearTimeout(timer);
          this.#take(message, stream);
          timer = this.#expectMessage(silence);
        }
        stream.error = new Error("the server ended the stream without an error");
      } catch (error) {
        stream.error = error;
        if (!("code" in error) || PERMANENT.includes(error.code)) this.failure = error;
      }
      clearTimeout(timer);
      await pause(RECONNECT_MS);
    }
  }

  #expectMessage(silence) {
    return this.silence_ms > 0 ? setTimeout(() => silence.abort(), this.silence_ms) : undefined;
  }

  #cursor() {
    const { epoch, revision } = this.replica;
    return revision === null ? undefined : { epoch, revision: BigInt(revision) };
  }

  #take(message, stream) {
    for (const change of message.changes) stream.frames.push(this.replica.apply(change));
    for (const mark of message.marks) this.replica.verify(mark);
    if (message.marks.length > 0) stream.heartbeats += 1;
    stream.caughtUp ||= message.caughtUp;
  }

  // Waits until `done` returns true.
  until(done, what) {
    const status = () => {
      const { error, frames } = this.stream;
      return `${what} (stream ${this.streams.length}: ${frames.length} frames, ${error ?? "open"})`;
    };
    return poll(() => {
      if (this.failure) throw this.failure;
      return done();
    }, status);
  }

  caughtUp() {
    return this.until(() => this.stream.caughtUp, `${this.inventoryId}: the first message of the stream`);
  }

  // Waits until the replica equals what `get` returns, an inventory from GetInventory.
  async converge(get) {
    const wanted = await get(this.inventoryId);
    await this.until(() => this.replica.isAt(wanted), `${this.inventoryId}: revision ${wanted.version.revision}`);
  }

  async cancel() {
    this.#aborted.abort();
    await this.finished;
  }
}
