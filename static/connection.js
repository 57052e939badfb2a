/** This tab's stream: what the console says of its state, and where it begins. */
import { parsePosition } from "./position.js";
import { NOTICES, connect } from "./sse-app.js";

/** What the console measures its latency with: published to this tab alone, and kept out of its log. */
export const PING = "console.ping";

const HISTORY = 50; // publications to show first on a fresh page

/**
 * Not shared with other tabs: each is to be a client with a name, of its own in the count of those connected, which
 * "everyone but me" leaves out and the pings come to.
 */
export class Connection {
  #stream = null;
  #draining = false;
  #top = null; // top of the log when the stream began: what is not after it is replayed

  /** `on` has a function for each of: state, welcome, gap, bye, event. */
  constructor({ client, topics, cursor, on }) {
    this.client = client;
    this.topics = topics;
    this.cursor = cursor;
    this.on = on;
    this.state = { name: "connecting" };
  }

  /** Opens the stream, resuming where it was; one that never was anywhere, with the newest publications first. */
  open() {
    this.#drop();
    this.#set("connecting");
    const { client, topics, cursor } = this;
    const stream = connect("events", { client, topics, lastEventId: cursor, last: HISTORY, shared: "none" });
    stream.onopen = () => this.#set("live");
    stream.onerror = () => this.#failed(stream.state);
    stream.onevent = (event) => this.#deliver(event);
    stream.addEventListener("welcome", (event) => this.#welcomed(event));
    stream.addEventListener("gap", (event) => this.on.gap(JSON.parse(event.data), event.lastEventId));
    stream.addEventListener("bye", (event) => this.#dismissed(event));
    this.#stream = stream;
  }

  /** Tries again now instead of waiting, or opens it anew. */
  hurry() {
    if (!this.#stream) return this.open();
    this.#set("connecting");
    this.#stream.reconnect();
  }

  /** Closes the stream on the user's wish; open() resumes it. */
  close() {
    this.#drop();
    this.#set("closed", { detail: "Disconnected. Connect again to receive what was published meanwhile." });
  }

  /** Goes on from the same position with other topic filters. */
  subscribe(topics) {
    this.topics = topics;
    this.open();
  }

  #deliver({ type, data, lastEventId: id }) {
    if (NOTICES.has(type)) return;
    const position = parsePosition(id);
    const replayed = position?.epoch === this.#top?.epoch && position?.offset <= this.#top?.offset;
    this.on.event({ id, type, data, replayed });
  }

  #welcomed(event) {
    const welcome = JSON.parse(event.data);
    this.#top = parsePosition(welcome.top);
    this.on.welcome(welcome);
  }

  #dismissed(event) {
    this.#draining = true;
    this.#set("draining");
    this.on.bye(JSON.parse(event.data));
  }

  /** An answer that is no stream has a status; until when to wait, unless no other try can help. */
  #failed({ until, status, code, detail }) {
    if (status) this.#set("refused", { until, code, detail });
    else this.#set(this.#draining ? "draining" : "reconnecting", { until });
    this.#draining = false;
  }

  #drop() {
    this.cursor = this.#stream?.lastEventId || this.cursor;
    this.#stream?.close();
    this.#stream = null;
  }

  #set(name, facts = {}) {
    this.state = { name, ...facts };
    this.on.state(this.state);
  }
}
