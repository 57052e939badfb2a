/** This tab's stream, with its state in the console's terms and the position where it begins. */
import { asksWho } from "./hub.js";
import { parsePosition } from "./position.js";
import { whyAsked, whyEnded } from "./reasons.js";
import { session } from "./session.js";
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
  #bye = ""; // the reason of the stream's end, until the next try
  #user = ""; // as the hub names it
  #top = null; // top of the log when the stream began; events up to it are replayed

  /** `on` has a function for each of: state, welcome, gap, bye, event. */
  constructor({ client, topics, cursor, on }) {
    this.client = client;
    this.topics = topics;
    this.cursor = cursor;
    this.on = on;
    this.state = { name: "connecting" };
  }

  /** This tab's name for publications `to` it: a hub that knows its user vouches for the name with the user alone. */
  get address() {
    return this.#user ? `${this.client}@${this.#user}` : this.client;
  }

  /** Opens the stream: after its last position, or for a first one with the newest publications. */
  open() {
    this.#closeStream();
    this.#set("connecting");
    const { client, topics, cursor } = this;
    const stream = connect("events", { client, topics, lastEventId: cursor, last: HISTORY, token: session.token, shared: "none" });
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
    if (!this.#stream || this.#stream.state.name === "closed") return this.open();
    this.#set("connecting");
    this.#stream.reconnect();
  }

  /** Closes the stream because the user asked for it; open() resumes it. */
  close() {
    this.#closeStream();
    this.#set("closed", { detail: "Disconnected. Connect again to receive what was published meanwhile." });
  }

  /** Opens the stream as at first: whose it is has changed, and a position tells where another has got to. */
  openAfresh() {
    this.#closeStream();
    this.cursor = null;
    this.open();
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
    this.#user = welcome.user ?? "";
    this.on.welcome(welcome);
  }

  #onBye(event) {
    const bye = JSON.parse(event.data);
    this.#bye = bye.reason;
    this.#set(...this.#ended({}));
    this.on.bye(bye);
  }

  /** Shows why the stream failed. Only an answer that is no stream has a status; `until` is missing if no retry follows. */
  #onError({ name, until, status, code, reason, detail }) {
    if (name === "closed") this.#set("closed", { reason, detail });
    else if (asksWho(code)) this.#set("asked", whyAsked({ reason, signedIn: session.signedIn }));
    else if (status) this.#set("refused", { until, code, detail, ...(code === "insufficient_scope" && { label: "Not granted" }) });
    else this.#set(...this.#ended({ until, reason, detail }));
    this.#bye = "";
  }

  /** The state after an end: a drain is news once, another reason of the hub's holds until the stream is open again. */
  #ended({ until, reason = this.#bye, detail }) {
    if (reason === "drain" || !reason) return [this.#bye ? "draining" : "reconnecting", { until }];
    const why = whyEnded(reason);
    return ["ended", { until, label: why.label, detail: detail ?? why.detail }];
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
