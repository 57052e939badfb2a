/** This tab's stream, with its state in the console's terms and the position where it begins. */
import { parsePosition } from "./position.js";
import { NOTICES, connect } from "./sse-app.js";

/** The type of the events that measure latency: published to this tab alone, and not shown in its log. */
export const PING = "console.ping";

const HISTORY = 50; // publications to show first on a fresh page

/**
 * A connection that is not shared with other tabs: each tab is a client with a name of its own, is counted for itself,
 * is left out by "everyone but me", and gets its own pings.
 */
export class Connection {
  #stream = null;
  #draining = false;
  #top = null; // top of the log when the stream began; events up to it are replayed

  /** `on` has a function for each of: state, welcome, gap, bye, event. */
  constructor({ client, topics, cursor, on }) {
    this.client = client;
    this.topics = topics;
    this.cursor = cursor;
    this.on = on;
    this.state = { name: "connecting" };
  }

  /** Opens the stream: after its last position, or for a first one with the newest publications. */
  open() {
    this.#closeStream();
    this.#set("connecting");
    const { client, topics, cursor } = this;
    const stream = connect("events", { client, topics, lastEventId: cursor, last: HISTORY, shared: "none" });
    stream.onopen = () => this.#set("live");
    stream.onerror = () => this.#onError(stream.state);
    stream.onevent = (event) => this.#onEvent(event);
    stream.addEventListener("welcome", (event) => this.#onWelcome(event));
    stream.addEventListener("gap", (event) => this.on.gap(JSON.parse(event.data), event.lastEventId));
    stream.addEventListener("bye", (event) => this.#onBye(event));
    this.#stream = stream;
  }

  /** Reconnects now instead of waiting, or opens the stream again after close(). */
  reconnect() {
    if (!this.#stream) return this.open();
    this.#set("connecting");
    this.#stream.reconnect();
  }

  /** Closes the stream because the user asked for it; open() resumes it. */
  close() {
    this.#closeStream();
    this.#set("closed", { detail: "Disconnected. Connect again to receive what was published meanwhile." });
  }

  /** Goes on from the same position with other topic filters. */
  subscribe(topics) {
    this.topics = topics;
    this.open();
  }

  #onEvent({ type, data, lastEventId: id }) {
    if (NOTICES.has(type)) return;
    const position = parsePosition(id);
    const replayed = position?.epoch === this.#top?.epoch && position?.offset <= this.#top?.offset;
    this.on.event({ id, type, data, replayed });
  }

  #onWelcome(event) {
    const welcome = JSON.parse(event.data);
    this.#top = parsePosition(welcome.top);
    this.on.welcome(welcome);
  }

  #onBye(event) {
    this.#draining = true;
    this.#set("draining");
    this.on.bye(JSON.parse(event.data));
  }

  /** Shows why the stream failed. Only an answer that is no stream has a status; `until` is missing if no retry follows. */
  #onError({ until, status, code, detail }) {
    if (status) this.#set("refused", { until, code, detail });
    else this.#set(this.#draining ? "draining" : "reconnecting", { until });
    this.#draining = false;
  }

  #closeStream() {
    this.cursor = this.#stream?.lastEventId || this.cursor;
    this.#stream?.close();
    this.#stream = null;
  }

  #set(name, facts = {}) {
    this.state = { name, ...facts };
    this.on.state(this.state);
  }
}
