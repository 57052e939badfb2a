/**
 * One EventSource at a time, and what the browser leaves out: how long until it reconnects, why it gave up, and the
 * events of types that nobody asked it for.
 */
import { parsePosition, reaches } from "./position.js";
import { recall, remember } from "./storage.js";

/** What the console measures its latency with: published to this tab alone, and kept out of its log. */
export const PING = "console.ping";

const RESERVED = new Set(["welcome", "gap", "cursor", "bye", "open", "error"]); // the hub's own, or the page's
const ALWAYS = ["message", PING];
const HISTORY = 50; // publications to show first on a fresh page
const RETRY = 3000; // ms; the wait before a reconnect until the hub has named one
const TYPES = 200; // remembered
const BACKOFF_MAX = 60_000; // ms

export class Connection {
  #source = null;
  #timer = 0;
  #refusals = 0;
  #retry = RETRY;
  #draining = false;
  #start = null; // position from which this subscription has been listening
  #checked = null; // top of the log when the statistics were last compared
  #top = null; // top of the log when the stream began: what is not after it is replayed
  #types = new Set([...ALWAYS, ...(recall("localStorage", "types") ?? [])]);

  /** `on` has a function for each of: state, welcome, gap, bye, event, types. */
  constructor({ client, topics, cursor, on }) {
    this.client = client;
    this.topics = topics;
    this.cursor = cursor;
    this.on = on;
    this.state = { name: "connecting" };
  }

  get types() {
    return [...this.#types];
  }

  /** Opens the stream, resuming after `cursor`; without one, with the newest publications first. */
  open(cursor = this.cursor) {
    this.#drop();
    this.cursor = cursor;
    this.#set("connecting");
    const url = new URL("events", document.baseURI);
    url.searchParams.set("client", this.client);
    for (const topic of this.topics) url.searchParams.append("topic", topic);
    if (cursor) url.searchParams.set("last_event_id", cursor);
    else url.searchParams.set("last", HISTORY);
    const source = (this.#source = new EventSource(url));
    source.onerror = () => this.#failed(source);
    source.addEventListener("welcome", (event) => this.#welcomed(event));
    source.addEventListener("gap", (event) => this.#told(event));
    source.addEventListener("bye", (event) => this.#dismissed(event));
    for (const type of this.#types) source.addEventListener(type, this.#deliver);
  }

  /** Closes the stream on the user's wish; open() resumes it. */
  close() {
    this.#drop();
    this.#set("closed", { detail: "Disconnected. Connect again to receive what was published meanwhile." });
  }

  /** Goes on from the same position with other topic filters. */
  subscribe(topics) {
    this.topics = topics;
    this.#start = null;
    this.open();
  }

  /** Listens for one more type, and fetches again what this subscription has missed of it. */
  listenFor(type) {
    if (this.#learn([type]) && this.#start) this.open(`${this.#start.epoch}-${this.#start.offset}`);
  }

  /** Listens for a type that this tab is about to publish. */
  expect(type) {
    this.#learn([type]);
  }

  /** Learns the types of the newest publications, and goes back to the first that the browser has skipped. */
  compare({ recent, top }) {
    const fresh = recent.filter((publication) => !this.#types.has(publication.event));
    const checked = this.#checked;
    this.#checked = parsePosition(top);
    if (!this.#learn(fresh.map((publication) => publication.event)) || !this.#start) return;
    const { epoch, offset } = this.#start;
    const missed = fresh
      .filter((publication) => reaches(this.topics, publication.topics))
      .map((publication) => parsePosition(publication.id))
      .find((position) => position?.epoch === epoch && position.offset > offset);
    if (!missed) return;
    // More may have been published since the last look than the statistics list: then everything since that look.
    const listed = parsePosition(recent[0].id).offset;
    const unseen = checked?.epoch === epoch && checked.offset < listed - 1;
    const after = Math.max(offset, unseen ? checked.offset : missed.offset - 1);
    if (this.state.name === "closed") this.cursor = `${epoch}-${after}`;
    else this.open(`${epoch}-${after}`);
  }

  #learn(types) {
    const fresh = types.filter((type) => type && !RESERVED.has(type) && !this.#types.has(type));
    for (const type of fresh) {
      this.#types.add(type);
      this.#source?.addEventListener(type, this.#deliver);
    }
    if (fresh.length) {
      remember("localStorage", "types", this.types.slice(-TYPES));
      this.on.types(this.types);
    }
    return fresh.length > 0;
  }

  #deliver = (event) => {
    this.cursor = event.lastEventId;
    const position = parsePosition(event.lastEventId);
    const replayed = position?.epoch === this.#top?.epoch && position?.offset <= this.#top?.offset;
    this.on.event({ id: event.lastEventId, type: event.type, data: event.data, replayed });
  };

  #welcomed(event) {
    const welcome = JSON.parse(event.data);
    this.cursor = event.lastEventId;
    this.#top = parsePosition(welcome.top);
    const begin = parsePosition(event.lastEventId);
    if (begin && (this.#start?.epoch !== begin.epoch || begin.offset < this.#start.offset)) this.#start = begin;
    this.#retry = welcome.retry ?? RETRY;
    this.#refusals = 0;
    this.#draining = false;
    this.#set("live");
    this.on.welcome(welcome);
  }

  #told(event) {
    this.cursor = event.lastEventId;
    this.#start = parsePosition(event.lastEventId) ?? this.#start;
    this.on.gap(JSON.parse(event.data), event.lastEventId);
  }

  #dismissed(event) {
    const bye = JSON.parse(event.data);
    this.cursor = event.lastEventId || this.cursor;
    this.#retry = bye.retry ?? this.#retry;
    this.#draining = true;
    this.#set("draining");
    this.on.bye(bye);
  }

  #failed(source) {
    if (source !== this.#source) return;
    if (source.readyState === EventSource.CLOSED) return void this.#refused(source);
    this.#set(this.#draining ? "draining" : "reconnecting", { until: Date.now() + this.#retry });
    this.#draining = false;
  }

  /** The browser has given up, as it does on every answer but 200: asks why, and tries again later where that can help. */
  async #refused(source) {
    this.#set("closed", { detail: "The server refused the stream." });
    const { status, detail } = await explain(source.url);
    if (source !== this.#source) return;
    if (status >= 400 && status < 500 && status !== 408 && status !== 429) return this.#set("closed", { detail, refused: true });
    const wait = Math.min(BACKOFF_MAX, 2000 * 2 ** this.#refusals) * (0.75 + Math.random() / 2);
    this.#refusals += 1;
    this.#timer = setTimeout(() => this.open(), wait);
    this.#set("closed", { detail, until: Date.now() + wait });
  }

  #drop() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #set(name, facts = {}) {
    this.state = { name, ...facts };
    this.on.state(this.state);
  }
}

/** What an EventSource does not say: the status of its answer, and the problem's detail. */
async function explain(url) {
  const cut = new AbortController();
  try {
    const answer = await fetch(url, { signal: AbortSignal.any([cut.signal, AbortSignal.timeout(5000)]) });
    const problem = answer.headers.get("Content-Type")?.startsWith("application/problem+json") ? await answer.json() : {};
    return { status: answer.status, detail: problem.detail ?? `The server refused the stream (status ${answer.status}).` };
  } catch {
    return { status: 0, detail: "The server refused the stream and cannot be reached now." };
  } finally {
    cut.abort();
  }
}
