/**
 * A hub's events in the browser. What takes an EventSource takes a Stream; beyond that it shares one connection with
 * the other tabs that ask for the same, tries again after any failure that may pass, and hears every type of event.
 *
 *     import { connect } from "/static/sse-app.js";
 *     const stream = connect("/events", { topics: ["orders/*"] });
 *     stream.addEventListener("order", (event) => show(JSON.parse(event.data)));
 *
 * This one file, without dependencies, is also the script of the shared worker. `docs/browser.md` tells how to use it.
 *
 * How tabs share: each tab is a position in the log. One of them all, or a worker, reads the hub and tells every tab
 * what comes after which position. A tab takes what follows on from its own, drops what it has, and what it lacks it
 * fetches over a connection of its own until it is level with the others. So it does not matter who reads, who dies, and
 * which message between tabs arrives late, twice or never.
 *
 *     Stream                    one tab's: what the page holds
 *     WorkerLink, LockLink      how it reaches who reads for all: a SharedWorker, or the tab that holds a Web Lock
 *     Source                    one connection: reads the hub, and comes back where it was
 *     Parser                    text/event-stream
 *
 * It reads with fetch, not with EventSource: that one hides why it failed, gives up on most failures, and delivers only
 * the types that somebody had named before they came, which tabs cannot agree on in time.
 *
 * @typedef {object} Options
 * @property {string[]} [topics] topic filters; none is everything
 * @property {string} [client] a name, kept over reconnects; tabs with different names do not share. Without it the hub
 *   makes one
 * @property {string} [lastEventId] resume after this position
 * @property {number} [last] without a position: first the newest so many
 * @property {string} [since] without a position: first what was published since an RFC 3339 time, or `15m`, `2h` ago
 * @property {"auto" | "worker" | "locks" | "none"} [shared] over a SharedWorker, over Web Locks and a BroadcastChannel,
 *   or not at all. "auto", the default, is the first of these that the browser has; what it does not have is "none"
 *
 * @typedef {object} State
 * @property {"connecting" | "open" | "waiting" | "stopped" | "closed"} name `stopped`: the same request would be
 *   answered the same, so it tries again only when it is told to; `closed`: by the page, for good
 * @property {number} [until] when it tries again, as Date.now() counts
 * @property {string} [detail] why it waits or has stopped, in words
 * @property {number} [status] of an answer that was no stream
 * @property {string} [code] of its problem, as in the hub's table of errors
 *
 * @typedef {Record<string, string>} Query parameters of one request: where to begin, and the client's name
 * @typedef {{ type: string, data: string, id: string }} Told an event; without an id of its own it has the one before
 * @typedef {{ after: string, events: Told[], cursor: string }} Batch all that is for us between two positions
 * @typedef {{ state: State, at: string, welcome: Told | null, opened?: boolean }} Here where who reads has got to.
 *   `opened`: it began where this tab asked it to
 * @typedef {{ why: Partial<State>, after?: number }} Ending why a connection ended, and the ms to let pass before the next
 * @typedef {{ ask?: boolean, retry?: boolean, join?: boolean }} Question from a tab to who reads: whether it is there, to
 *   try again now, what to do about a tab that is new
 * @typedef {{ here?: Here, state?: State, batch?: Batch }} News from who reads to the tabs
 */

const PROTOCOL = "sse-app 2"; // between tabs; another number for another version of it, and they do not share
const BEGIN = ["lastEventId", "last_event_id", "last", "since"]; // parameters that say where one stream begins
const [WELCOME, GAP, CURSOR, BYE] = ["welcome", "gap", "cursor", "bye"]; // as in sse_app/events.py
const OF_A_CONNECTION = new Set([WELCOME, BYE]); // they have no position in the log
const RETRY = 3_000; // ms; the wait before the next try until the hub has named one
const RETRY_MIN = 100; // ms; a hub that says 0, or a wrong one, is not to be asked without a pause
const RETRY_MAX = 3_600_000; // ms; the longest that a hub can be set to
const BACKOFF_MAX = 60_000; // ms
const TIMELY = new Set([408, 425, 429]); // of the 4xx those that another time may change
const SILENCE = 45_000; // ms; a connection is dead after three heartbeats that did not come, but not sooner
const TIMER_MAX = 2 ** 31 - 1; // ms; a browser's timer of more than that is over at once
const ASK = 10_000; // ms between questions whether who reads is alive, from tabs that are looked at
const ANSWER = 5_000; // ms for the answer

/** The types of what the hub itself says on a stream. */
export const NOTICES = new Set([WELCOME, GAP, CURSOR, BYE]);

/**
 * Listens to a hub.
 *
 * @param {string | URL} url of its `/events`, against the page's; it may have the parameters that the options stand for
 * @param {Options} [options]
 * @returns {Stream}
 */
export function connect(url, options = {}) {
  return new Stream(url, options);
}

/**
 * An absolute URL, without a user and a password: fetch and the page's history refuse one that has them, as every
 * relative URL has on a page that was opened with them. The browser sends them by itself.
 *
 * @param {string | URL} url against the page's
 */
export function addressOf(url) {
  const address = new URL(url, document.baseURI);
  address.username = address.password = "";
  return address;
}

/**
 * What `connect` returns. Its events are those of an EventSource, of every type, and those of the hub itself: `welcome`
 * at the begin of every connection, `gap` where something was missed, `bye` before a planned end. `open` is dispatched
 * when it is connected, `error` when it lost that or could not be; then `state` says why, and when it tries again.
 */
export class Stream extends EventTarget {
  /** @type {((event: Event) => void) | null} */
  onopen = null;
  /** @type {((event: MessageEvent) => void) | null} */
  onmessage = null;
  /** @type {((event: Event) => void) | null} */
  onerror = null;
  /** Every event of whatever type, before its listeners. @type {((event: MessageEvent) => void) | null} */
  onevent = null;

  /** @type {State} */
  #state = { name: "connecting" };
  #position = ""; // everything up to here was dispatched, or is not for this stream
  /** @type {Query} */
  #begin = {}; // where it begins as long as it has no position
  #client = "";
  #here = true; // false while the browser has the page put away
  /** @type {("worker" | "locks")[]} */
  #ways;
  /** @type {WorkerLink | LockLink | null} */
  #link = null;
  /** @type {State} */
  #groupState = { name: "connecting" };
  #groupAt = ""; // the others have got to here
  #met = false; // its place among the others is known
  /** @type {Source | null} */
  #own = null; // while it is not level with the others, or has none
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #unanswered = undefined;
  #ended = new AbortController();

  /**
   * @param {string | URL} url
   * @param {Options} options
   */
  constructor(url, options) {
    super();
    const address = addressOf(url);
    const query = address.searchParams;
    const topics = new Set([...query.getAll("topic"), ...(options.topics ?? [])]);
    query.delete("topic");
    for (const topic of [...topics].sort()) query.append("topic", topic);
    const cursor = options.lastEventId || query.get("lastEventId") || query.get("last_event_id"); // one: two are none
    const last = options.last || query.get("last");
    const since = options.since || query.get("since");
    if (cursor) this.#begin.last_event_id = cursor;
    if (last) this.#begin.last = String(last);
    if (since) this.#begin.since = since;
    for (const name of BEGIN) query.delete(name);
    if (options.client) query.set("client", options.client);
    query.sort(); // tabs that ask for the same have the same address
    /** Where it listens, without where it began. */
    this.url = address.href;
    const ways = WAYS[options.shared ?? "auto"];
    if (!ways) throw new TypeError(`shared is one of ${Object.keys(WAYS).join(", ")}`);
    this.#ways = [...ways];
    this.#attend();
    this.#enter();
  }

  /** Whether it is connected, and if not, when and why. */
  get state() {
    return this.#state;
  }

  /** As an EventSource has it: 0 connecting or waiting, 1 open, 2 stopped or closed. */
  get readyState() {
    return { connecting: 0, waiting: 0, open: 1, stopped: 2, closed: 2 }[this.#state.name];
  }

  /** The position to resume after: `connect(url, { lastEventId })` goes on from here. */
  get lastEventId() {
    return this.#position;
  }

  /** How it shares its connection: "worker", "locks", or "none". */
  get shared() {
    return this.#ways[0] ?? "none";
  }

  /** Tries again now instead of waiting, or once more after it has stopped, for all that share the connection. */
  reconnect() {
    this.#own?.retry();
    this.#link?.send({ retry: true });
  }

  /** Ends it, for this page alone. */
  close() {
    this.#leave();
    this.#ended.abort();
    this.#state = { name: "closed" };
  }

  /** Listens to the browser. What it freezes or keeps for the back button gives up its place, and comes back for it. */
  #attend() {
    const { signal } = this.#ended;
    for (const name of /** @type {const} */ (["open", "message", "error"])) {
      this.addEventListener(name, (event) => this[`on${name}`]?.(/** @type {MessageEvent} */ (event)));
    }
    const putAway = () => {
      this.#here = false;
      this.#leave();
    };
    const back = () => {
      if (!this.#here) this.#enter();
      this.#here = true;
    };
    addEventListener("pagehide", putAway, { signal });
    addEventListener("pageshow", back, { signal });
    document.addEventListener("freeze", putAway, { signal });
    document.addEventListener("resume", back, { signal });
    document.addEventListener("visibilitychange", () => this.#ask(), { signal });
    const asking = setInterval(() => this.#ask(), ASK);
    signal.addEventListener("abort", () => clearInterval(asking));
  }

  #enter() {
    this.#met = false;
    const way = this.#ways[0];
    if (!way) return this.#goAlone();
    try {
      const Link = way === "worker" ? WorkerLink : LockLink;
      this.#link = new Link(this.url, () => this.#wanted(), (news) => this.#told(news), () => this.#fallBack());
    } catch {
      this.#fallBack(); // the browser has no such thing, or not for this page
    }
  }

  #fallBack() {
    this.#leave();
    this.#ways.shift();
    this.#enter();
  }

  #leave() {
    clearTimeout(this.#unanswered);
    this.#unanswered = undefined;
    this.#own?.close();
    this.#own = null;
    this.#link?.leave();
    this.#link = null;
  }

  /** @returns {Query} */
  #wanted() {
    const begin = this.#position ? { last_event_id: this.#position } : this.#begin;
    return this.#client ? { ...begin, client: this.#client } : begin;
  }

  /** Reads by itself from where it is. */
  #goAlone() {
    this.#own?.close();
    const own = new Source(this.url, this.#wanted(), ({ state, batch }) => {
      if (own !== this.#own) return;
      if (state) this.#show(state);
      if (batch) this.#takeAll(batch);
      this.#stepOver();
    });
    this.#own = own;
    this.#show(own.state);
  }

  /** Goes on with the others once nothing lies between: whatever they are told next comes after what is here. */
  #stepOver() {
    if (!this.#own || !this.#met || !reached(this.#position, this.#groupAt)) return;
    this.#own.close();
    this.#own = null;
    this.#show(this.#groupState);
  }

  #ask() {
    if (document.hidden || this.#unanswered || !this.#link) return;
    this.#unanswered = setTimeout(() => {
      this.#unanswered = undefined;
      this.#link?.renew();
    }, ANSWER);
    this.#link.send({ ask: true });
  }

  /** @param {News} news */
  #told({ here, state, batch }) {
    clearTimeout(this.#unanswered);
    this.#unanswered = undefined;
    if (here) this.#placeAmong(here);
    if (state) this.#groupState = state;
    if (state?.name === "stopped" && !this.#position) this.#met = false; // who reads next may begin elsewhere
    if (state && !this.#own && (this.#met || state.name !== "open")) this.#show(state);
    if (batch) this.#follow(batch);
    this.#stepOver();
  }

  /** @param {Here} here */
  #placeAmong({ state, at, welcome, opened }) {
    this.#groupState = state;
    this.#groupAt = at;
    if (opened) {
      this.#met = true;
      this.#own?.close();
      this.#own = null;
      this.#position ||= at;
    }
    if (!this.#met && welcome) this.#meet(at, welcome);
    else if (this.#met && !this.#own && !level(this.#position, at)) return this.#goAlone();
    if (!this.#own) this.#show(state);
  }

  /**
   * Finds its place among the others: what was before it came is not for a stream that did not ask for it.
   *
   * @param {string} at
   * @param {Told} welcome
   */
  #meet(at, welcome) {
    this.#met = true;
    this.#client = JSON.parse(welcome.data).client;
    const wanted = this.#position || this.#begin.last_event_id;
    if (wanted ? wanted !== at : this.#begin.last || this.#begin.since) return this.#goAlone();
    this.#position = wanted || later(at, JSON.parse(welcome.data).top);
    this.#show(this.#groupState);
    this.#dispatch(welcome);
  }

  /** @param {Batch} batch */
  #follow(batch) {
    this.#groupAt = batch.cursor;
    const welcome = batch.events.find(({ type }) => type === WELCOME);
    if (!this.#met && welcome) {
      this.#meet(batch.after, welcome);
      batch = { ...batch, events: batch.events.filter((event) => event !== welcome) };
    }
    if (!this.#met || this.#own) return;
    if (level(this.#position, batch.after)) this.#takeAll(batch);
    else this.#goAlone();
  }

  /** @param {Batch} batch */
  #takeAll({ after, events, cursor }) {
    const next = this.#position === after; // then all of it is news, a gap that leads back too
    for (const event of events) {
      if (!OF_A_CONNECTION.has(event.type)) {
        if (!next && reached(this.#position, event.id)) continue;
        this.#position = event.id;
      }
      this.#dispatch(event);
      if (this.#state.name === "closed") return;
    }
    this.#position = next ? cursor : later(this.#position, cursor);
  }

  /** @param {Told} event */
  #dispatch({ type, data, id }) {
    if (type === WELCOME) this.#client = JSON.parse(data).client;
    const event = new MessageEvent(type, { data, lastEventId: id, origin: new URL(this.url).origin });
    try {
      this.onevent?.(event);
    } catch (error) {
      reportError(error); // as dispatchEvent does: the page's mistake is not to end the stream
    }
    this.dispatchEvent(event);
  }

  /** @param {State} state */
  #show(state) {
    const before = this.#state;
    if (before.name === "closed") return;
    this.#state = state;
    if (state.name === "open" && before.name !== "open") this.dispatchEvent(new Event("open"));
    const news = state.name === "waiting" ? before.until !== state.until : before.name !== state.name;
    if (news && (state.name === "waiting" || state.name === "stopped")) this.dispatchEvent(new Event("error"));
  }
}

/** @type {Record<string, ("worker" | "locks")[]>} */
const WAYS = { auto: ["worker", "locks"], worker: ["worker"], locks: ["locks"], none: [] };

/** To a SharedWorker that reads for all. The worker's name tells it where. */
class WorkerLink {
  /** @type {MessagePort | undefined} */
  #port;
  #release = () => {};

  /**
   * @param {string} address
   * @param {() => Query} wanted
   * @param {(news: News) => void} told
   * @param {() => void} failed
   */
  constructor(address, wanted, told, failed) {
    this.address = address;
    this.wanted = wanted;
    this.told = told;
    this.failed = failed;
    this.renew();
  }

  /** Joins anew; a worker that died is started again. */
  renew() {
    this.leave();
    const worker = new SharedWorker(import.meta.url, { type: "module", name: `${PROTOCOL} ${this.address}` });
    const port = (this.#port = worker.port);
    worker.onerror = () => port === this.#port && this.failed(); // not to be loaded: what fails in it is not told here
    port.onmessage = ({ data }) => port === this.#port && this.told(data);
    // A lock that nobody else wants, held as long as this page lives: the worker waits for its end.
    const life = `${PROTOCOL} ${Math.random()}`;
    const join = () => port === this.#port && port.postMessage({ join: this.wanted(), life });
    if (!navigator.locks) return void join();
    navigator.locks.request(life, () => {
      join();
      return /** @type {Promise<void>} */ (new Promise((resolve) => (this.#release = resolve)));
    });
  }

  /** @param {Question} question */
  send(question) {
    this.#port?.postMessage(question);
  }

  leave() {
    this.#port?.postMessage({ leave: true });
    this.#port?.close();
    this.#port = undefined;
    this.#release();
  }
}

/** In the worker: one connection, as long as there is a tab for it. */
function serve(/** @type {string} */ address) {
  /** @type {Set<MessagePort>} */
  const ports = new Set();
  /** @type {Source | null} */
  let source = null;
  const tell = (/** @type {News} */ news) => ports.forEach((port) => port.postMessage(news));
  const leave = (/** @type {MessagePort} */ port) => {
    if (!ports.delete(port) || ports.size) return;
    source?.close();
    source = null;
  };
  const answer = (/** @type {MessagePort} */ port, /** @type {any} */ { join, life, ask, retry, leave: goes }) => {
    if (join) {
      if (source?.state.name === "stopped" && !source.tryAnew()) source = null;
      const opened = !source;
      source ??= new Source(address, join, tell);
      ports.add(port);
      port.postMessage({ here: { ...source.here(), opened } });
      navigator.locks?.request(life, () => leave(port));
    }
    if (ask && source) port.postMessage({ here: source.here() });
    if (retry) source?.retry();
    if (goes) leave(port);
  };
  addEventListener("connect", (event) => {
    const [port] = /** @type {MessageEvent} */ (event).ports;
    if (port) port.onmessage = ({ data }) => answer(port, data);
  });
}

/** To the tab that holds a lock and reads for all: this one, when its turn comes. */
class LockLink {
  /** @type {Source | null} */
  #source = null;
  #release = () => {};
  #queued = new AbortController();
  #left = false;

  /**
   * @param {string} address
   * @param {() => Query} wanted
   * @param {(news: News) => void} told
   */
  constructor(address, wanted, told) {
    this.address = address;
    this.wanted = wanted;
    this.told = told;
    this.name = `${PROTOCOL} ${address}`;
    if (!navigator.locks) throw new Error("no Web Locks");
    this.channel = new BroadcastChannel(this.name);
    this.channel.onmessage = ({ data }) => this.#heard(data);
    this.#queue({ signal: this.#queued.signal });
    this.#join();
  }

  /**
   * Asks who reads, once this tab stands in the queue for the lock: a tab that stands back for it would else be the next
   * itself.
   */
  async #join() {
    await navigator.locks.query();
    if (!this.#left && !this.#source) this.send({ ask: true, join: true });
  }

  /** Whoever holds the lock does not answer: takes it away. */
  renew() {
    this.#queued.abort();
    this.#queued = new AbortController();
    this.#queue({ steal: true });
  }

  /** @param {Question} question */
  send(question) {
    if (this.#source) this.#answer(question, this.told);
    else this.channel.postMessage(question);
  }

  leave() {
    this.#left = true;
    this.#queued.abort();
    this.#resign();
    this.channel.close();
  }

  /** @param {LockOptions} options */
  #queue(options) {
    navigator.locks.request(this.name, options, () => this.#lead()).catch(() => this.#stolen());
  }

  #lead() {
    if (this.#left) return;
    const source = new Source(this.address, this.wanted(), (news) => {
      if (source !== this.#source) return;
      this.channel.postMessage(news);
      this.told(news);
    });
    this.#source = source;
    this.told({ here: { ...source.here(), opened: true } });
    this.channel.postMessage({ here: source.here() });
    return /** @type {Promise<void>} */ (new Promise((resolve) => (this.#release = resolve)));
  }

  /** Another tab took the lock from this one, which had not answered. */
  #stolen() {
    if (this.#source) this.#standBack(); // else it only waited for it
  }

  /** Lets another tab read for all. */
  #standBack() {
    this.#resign();
    this.#queue({ signal: this.#queued.signal });
    this.send({ ask: true });
  }

  #resign() {
    this.#source?.close();
    this.#source = null;
    this.#release();
  }

  /** @param {News & Question} message */
  #heard(message) {
    if (this.#source) this.#answer(message, (news) => this.channel.postMessage(news));
    else if (!message.ask && !message.retry) this.told(message);
  }

  /**
   * @param {Question} question
   * @param {(news: News) => void} tell
   */
  #answer({ ask, retry, join }, tell) {
    if (ask && this.#source) tell({ here: this.#source.here() });
    if (retry) this.#source?.retry();
    if (join && this.#source?.state.name === "stopped" && !this.#source.tryAnew()) this.#standBack();
  }
}

/** One connection to the hub, and the next one where the last has ended. */
class Source {
  /** @type {State} */
  state = { name: "connecting" };
  /** @type {Told | null} */
  welcome = null; // the newest
  #retry = RETRY;
  #failures = 0;
  #silence = SILENCE; // until the hub has told how often it sends a heartbeat
  #closed = false;
  #cut = new AbortController();
  #wake = () => {};
  /** @type {{ end: string | null, top: string } | null} */
  #replay = null; // until everything up to the top of the log has come

  /**
   * @param {string} address
   * @param {Query} query where to begin
   * @param {(news: News) => void} tell
   */
  constructor(address, query, tell) {
    this.address = address;
    this.query = query;
    this.tell = tell;
    /** Everything up to here has come. */
    this.cursor = query.last_event_id ?? "";
    this.online = () => this.state.name === "waiting" && this.#wake();
    addEventListener("online", this.online);
    this.#run();
  }

  /** @returns {Here} */
  here() {
    return { state: this.state, at: this.cursor, welcome: this.welcome };
  }

  retry() {
    if (this.state.name === "waiting" || this.state.name === "stopped") this.#wake();
  }

  /**
   * Tries again after it has stopped, for a tab that comes new: perhaps somebody has logged in. Returns false when it
   * has ended instead, because it was never connected: where it was to begin may be what was refused.
   */
  tryAnew() {
    if (this.welcome) this.retry();
    else this.close();
    return this.welcome !== null;
  }

  close() {
    this.#closed = true;
    removeEventListener("online", this.online);
    this.#cut.abort();
    this.#wake();
  }

  async #run() {
    await null; // whoever made it has it before it says anything
    while (!this.#closed) {
      if (this.state.name !== "connecting") this.#set({ name: "connecting" });
      this.#cut = new AbortController();
      /** @type {Ending} */
      const ending = await this.#read().catch((error) => ({ why: { detail: detailOf(error, this.state) } }));
      this.#cut.abort();
      if (!this.#closed) await this.#pause(ending);
    }
  }

  /**
   * Waits until the next try.
   *
   * @param {Ending} ending
   */
  async #pause({ why, after = 0 }) {
    const woken = new Promise((resolve) => (this.#wake = () => resolve(null)));
    if (isFinal(why.status)) {
      this.#failures = 0;
      this.#set({ name: "stopped", ...why });
      return woken;
    }
    const backoff = Math.min(BACKOFF_MAX, this.#retry * 2 ** this.#failures);
    const wait = Math.max(backoff, this.#retry, after) * (1 + Math.random() / 2);
    this.#failures += 1;
    const timer = setTimeout(this.#wake, wait);
    this.#set({ name: "waiting", until: Date.now() + wait, ...why });
    await woken;
    clearTimeout(timer);
  }

  /**
   * Reads one connection to its end, and tells why it ended.
   *
   * @returns {Promise<Ending>}
   */
  async #read() {
    const cut = this.#cut;
    const headers = { Accept: "text/event-stream" }; // a full hub answers who says so with a time to come back
    const response = await fetch(this.#request(), { headers, cache: "no-store", signal: cut.signal });
    let timer = 0;
    // A connection that nobody closed, after a sleep or in a broken network, is silent for ever.
    const watch = () => {
      clearTimeout(timer);
      timer = setTimeout(() => cut.abort(SILENT), this.#silence);
    };
    try {
      watch();
      if (!response.body || !isStream(response)) return await explain(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new Parser();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return { why: { detail: "The hub ended the stream." } };
        if (this.#closed) return { why: {} };
        this.#take(parser.feed(value));
        watch();
        if (parser.retry === null) continue;
        this.#retry = Math.min(Math.max(parser.retry, RETRY_MIN), RETRY_MAX);
        this.#failures = 0; // it is there, and says itself when to come
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #request() {
    const url = new URL(this.address);
    const query = this.cursor ? { ...this.query, last_event_id: this.cursor } : this.query;
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    return url;
  }

  /** @param {Block[]} blocks */
  #take(blocks) {
    const after = this.cursor;
    /** @type {Told[]} */
    const events = [];
    for (const { type, data, id } of blocks) {
      this.cursor = id ?? this.cursor;
      if (data === null) continue; // it only moves the cursor
      const event = { type, data, id: this.cursor };
      events.push(event);
      if (type === WELCOME) this.#welcomed(event);
    }
    if (this.#replay && (this.#replay.end === null || reached(this.cursor, this.#replay.end))) {
      this.cursor = later(this.cursor, this.#replay.top);
      this.#replay = null;
    }
    if (events.length || this.cursor !== after) this.tell({ batch: { after, events, cursor: this.cursor } });
  }

  /** @param {Told} welcome */
  #welcomed(welcome) {
    const { client, last, top, heartbeat } = JSON.parse(welcome.data);
    this.welcome = welcome;
    this.query = { client };
    this.#silence = Math.min(Math.max(SILENCE, 3_000 * heartbeat || 0), TIMER_MAX);
    this.#replay = { end: last?.id ?? null, top };
    this.#set({ name: "open" });
  }

  /** @param {State} state */
  #set(state) {
    this.state = state;
    this.tell({ state });
  }
}

const SILENT = new Error("Nothing has come from the hub for too long.");

/** @returns {string} */
function detailOf(/** @type {unknown} */ error, /** @type {State} */ state) {
  if (error === SILENT) return SILENT.message;
  return state.name === "open" ? "The connection was lost." : "The hub cannot be reached.";
}

/** As EventSource takes it (WHATWG HTML 9.2.3). */
function isStream(/** @type {Response} */ response) {
  return response.status === 200 && /^text\/event-stream\s*(;|$)/i.test(response.headers.get("Content-Type") ?? "");
}

/** Whether the same request would be answered the same. With 204 a server ends it (WHATWG HTML 9.2.3). */
function isFinal(/** @type {number | undefined} */ status = 0) {
  return status === 204 || (status >= 400 && status < 500 && !TIMELY.has(status));
}

/**
 * What an answer that is no stream says: the hub's problem details, or nothing but a status.
 *
 * @returns {Promise<Ending>}
 */
async function explain(/** @type {Response} */ response) {
  const { status, headers } = response;
  const isProblem = /^application\/problem\+json\s*(;|$)/i.test(headers.get("Content-Type") ?? "");
  const problem = isProblem ? await response.json().catch(() => null) : null;
  const detail = problem?.detail ?? `The answer was no stream (status ${status}).`;
  return { why: { status, code: problem?.code, detail }, after: retryAfter(headers) };
}

/** The ms that Retry-After asks to wait: seconds, or a date by the clock of who sent it (RFC 9110 10.2.3). */
function retryAfter(/** @type {Headers} */ headers) {
  const asked = headers.get("Retry-After") ?? "";
  const sent = Date.parse(headers.get("Date") ?? "") || Date.now(); // another origin's Date is not to be seen
  const wait = /^[0-9]+$/.test(asked) ? Number(asked) * 1_000 : / GMT$/.test(asked) ? Date.parse(asked) - sent : 0;
  return Math.min(wait || 0, RETRY_MAX);
}

/**
 * Reads text/event-stream as the standard words it (WHATWG HTML 9.2.6).
 *
 * @typedef {{ type: string, data: string | null, id: string | null }} Block one without data only moves the cursor
 */
class Parser {
  /** @type {number | null} */
  retry = null; // ms; the reconnection time that the stream named last
  #line = ""; // what is there of the next one
  #halfEnd = false; // a CR was last; a LF belongs to it
  #type = "";
  /** @type {string[]} */
  #data = [];
  /** @type {string | null} */
  #id = null;

  /**
   * @param {string} text of any length, cut anywhere
   * @returns {Block[]} those that it completes
   */
  feed(text) {
    if (this.#halfEnd && text.startsWith("\n")) text = text.slice(1);
    this.#halfEnd = text.endsWith("\r");
    const lines = text.split(/\r\n|\n|\r/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop() ?? "";
    /** @type {Block[]} */
    const blocks = [];
    for (const line of lines) {
      if (line) this.#field(line);
      else this.#end(blocks);
    }
    return blocks;
  }

  /** @param {string} line */
  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
  }

  /** @param {Block[]} blocks */
  #end(blocks) {
    const data = this.#data.length ? this.#data.join("\n") : null;
    if (data !== null || this.#id !== null) blocks.push({ type: this.#type || "message", data, id: this.#id });
    this.#type = "";
    this.#data = [];
    this.#id = null;
  }
}

/**
 * Whether who is at a position has everything up to another; of two logs nobody can say.
 *
 * @param {string} position
 * @param {string} id
 */
function reached(position, id) {
  const [a, b] = [position.lastIndexOf("-"), id.lastIndexOf("-")];
  if (a < 0 || a !== b || position.slice(0, a) !== id.slice(0, b)) return false;
  return Number(position.slice(a + 1)) >= Number(id.slice(b + 1));
}

/** Whether nothing can lie between a position and what comes after another. */
function level(/** @type {string} */ position, /** @type {string} */ after) {
  return position === after || reached(position, after);
}

/** Of two positions the one that is further; of two logs the second. */
function later(/** @type {string} */ a, /** @type {string} */ b) {
  return reached(a, b) ? a : b;
}

// Loaded by WorkerLink rather than by a page.
const loadedAs = /** @type {{ name?: unknown }} */ (globalThis).name;
if (!("document" in globalThis) && typeof loadedAs === "string" && loadedAs.startsWith(`${PROTOCOL} `)) {
  serve(loadedAs.slice(PROTOCOL.length + 1));
}
