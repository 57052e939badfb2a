/**
 * A hub's events in the browser. A Stream can stand in for an EventSource. Beyond that it shares one connection with
 * the other tabs that ask for the same, retries after every failure that may pass, and dispatches every type of event.
 *
 *     import { connect } from "/static/sse-app.js";
 *     const stream = connect("/events", { topics: ["orders/*"] });
 *     stream.addEventListener("order", (event) => show(JSON.parse(event.data)));
 *
 * This one file, without dependencies, is also the script of the shared worker. `docs/browser.md` tells how to use it.
 *
 * How tabs share: each tab is a position in the log. The leader, which is one of the tabs or a worker, reads the hub and
 * sends every tab batches of events, each with the position that it follows. A tab accepts a batch that follows its own
 * position and drops events that it has. Events that it lacks it fetches over a connection of its own, until it has got
 * as far as the leader. So it does not matter which tab leads, which one dies, and which message between tabs arrives
 * late, twice or never.
 *
 *     Stream                    one tab's stream, which the page holds
 *     WorkerLink, LockLink      the way to the leader: a SharedWorker, or the tab that holds a Web Lock
 *     Source                    a connection to the hub, which reconnects and resumes
 *     Credential                the token or ticket of its connections, as the page's function returns it
 *     Parser                    text/event-stream
 *
 * A Source uses fetch, since an EventSource hides why it failed, gives up on most failures, and delivers only events of
 * types that were named before: tabs could not agree on the types in time.
 *
 * @typedef {object} Options
 * @property {string[]} [topics] topic filters; none is everything
 * @property {string} [client] a name, kept over reconnects; tabs with different names do not share. Without it the hub
 *   makes one
 * @property {string} [lastEventId] resume after this position
 * @property {number} [last] without a position: first the newest so many
 * @property {string} [since] without a position: first what was published since an RFC 3339 time, or `15m`, `2h` ago
 * @property {(ask: { refresh: boolean }) => string | Promise<string>} [token] returns the bearer token for the next
 *   connection; with `refresh` a new one, since the hub has refused the last one or ended its stream
 * @property {(ask: { refresh: boolean }) => string | Promise<string>} [ticket] returns a new ticket of the hub's
 * @property {string | number} [user] who the page's user is; tabs of different users do not share, and tabs with
 *   `token` or `ticket` only when they name one. The hub does not get it
 * @property {RequestCredentials} [credentials] to which hub cookies are sent: "same-origin", the default, "include" for
 *   a hub at another origin, or "omit"
 * @property {"auto" | "worker" | "locks" | "none"} [shared] over a SharedWorker, over Web Locks and a BroadcastChannel,
 *   or not at all. "auto", the default, is the first of these that the browser has; what it does not have is "none"
 *
 * @typedef {object} State
 * @property {"connecting" | "open" | "waiting" | "stopped" | "closed"} name `stopped`: the same request would get the
 *   same answer, so only reconnect() tries again; `closed`: for good, by the page or since its user has changed
 * @property {number} [until] the time of the next try, as Date.now() counts
 * @property {string} [detail] why the stream waits or has stopped, in words
 * @property {number} [status] the status of an answer that was no stream
 * @property {string} [code] the code of that answer's problem, as in the hub's table of errors
 * @property {string} [reason] why the hub ended the last stream, as its `bye` said; or `token_failed`, `ticket_failed`:
 *   the page's function has thrown, or returned none; or `user_changed`
 *
 * @typedef {"" | "token" | "ticket"} Kind of the secret that a connection needs
 * @typedef {{ address: string, user: string, kind: Kind, credentials: RequestCredentials }} Target what tabs that share
 *   have in common. Its text names the worker, the lock and the channel: it has no secret
 * @typedef {(refresh: boolean) => Promise<string>} Ask for a secret; rejects when there is none
 * @typedef {Record<string, string>} Query parameters of one request: where to begin, and the client's name
 * @typedef {{ type: string, data: string, id: string }} HubEvent an event; without an id of its own it has the last one
 * @typedef {{ after: string, events: HubEvent[], cursor: string }} Batch all events of a stream between two positions
 * @typedef {{ state: State, at: string, welcome: HubEvent | null, opened?: boolean }} Here the leader's state and
 *   position. `opened`: the leader began where this tab asked it to
 * @typedef {{ why: Partial<State>, after?: number }} Ending why a connection ended, and the ms to wait before the next
 * @typedef {{ wanted: () => Query, ask: Ask, onNews: (news: News) => void }} Tab what a link to the leader needs of it
 * @typedef {{ ask?: boolean, retry?: boolean, join?: boolean }} Question from a tab to the leader: `ask` for its Here,
 *   `retry` now, `join`: a tab is new
 * @typedef {{ here?: Here, state?: State, batch?: Batch }} News from the leader to the tabs
 */

const PROTOCOL = "sse-app 3"; // of the messages between tabs; tabs with different numbers do not share
const BEGIN = ["lastEventId", "last_event_id", "last", "since"]; // parameters that say where one stream begins
const [WELCOME, GAP, CURSOR, BYE] = ["welcome", "gap", "cursor", "bye"]; // as in sse_app/events.py
const IN_NO_URL = /^(access_token|authorization|token|jwt)$/i; // a hub refuses them: URLs are logged
const EXPIRED = "expired"; // the reason of a bye, as the others here
const RENEWED = new Set([EXPIRED, "revoked", "replaced", "contested"]); // the old secret would be refused
const FAREWELLS = new Map([
  [EXPIRED, "The permission to listen has expired."],
  ["revoked", "The permission to listen was withdrawn."],
  ["kicked", "The hub has sent this client away for a while."],
  ["changed", "What this client may listen to has changed."],
  ["replaced", "Another connection has taken this one's place."],
  ["contested", "Others have used the same ticket."],
  ["limit", "The hub has too many connections of this client."],
]);
const OF_A_CONNECTION = new Set([WELCOME, BYE]); // they have no position in the log
const RETRY = [2_000, 5_000]; // ms; the wait before the next try, at random between, until the hub has named one
const RETRY_MIN = 100; // ms; a faulty hub that says 0 would be asked again and again without a pause
const RETRY_MAX = 3_600_000; // ms; the longest that a hub can be set to
const BACKOFF = [500, 30_000]; // ms; the least that is doubled after a failure, and at most; the hub may ask for more
const TIMELY = new Set([408, 425, 429]); // the 4xx statuses that may change with time
const SILENCE = 45_000; // ms; a connection is dead after three heartbeats that did not come, but not sooner
const TIMER_MAX = 2 ** 31 - 1; // ms; a browser's timer with a longer delay fires at once
const ASK = 10_000; // ms between a visible tab's questions whether the leader is alive
const ANSWER = 5_000; // ms until the leader must have answered
const SECRET_WAIT = 30_000; // ms; a function that does not return for so long has failed

/** The types of the hub's own notices on a stream. */
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
 * The stream that `connect` returns. It dispatches publications of every type, and the hub's notices: `welcome` at the
 * begin of every connection, `gap` where publications were missed, `bye` before a planned end. It dispatches `open` when
 * it is connected, and `error` when a connection was lost or refused; `state` says why, and when it tries again.
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
  #position = ""; // all publications for this stream up to here were dispatched
  /** @type {Query} */
  #begin = {}; // where the stream begins while it has no position
  #client = "";
  #user = ""; // as the hub has named the user of this stream, if it did
  #active = true; // false while the browser has the page frozen, or kept for the back button
  /** @type {("worker" | "locks")[]} */
  #ways;
  /** @type {Target} */
  #target;
  /** @type {Ask} */
  #ask;
  /** @type {WorkerLink | LockLink | null} */
  #link = null;
  /** @type {State} */
  #groupState = { name: "connecting" };
  #groupAt = ""; // the leader's position
  #joined = false; // true once this stream's position is known relative to the leader's
  /** @type {Source | null} */
  #ownSource = null; // a connection for this tab alone, while it lacks events that the leader had, or has no leader
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #answerTimer = undefined;
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
    const kind = kindOf(options, query);
    this.#ask = asking(kind && options[kind], query.get("ticket"), kind);
    query.delete("ticket");
    if (options.client) query.set("client", options.client);
    query.sort(); // tabs that ask for the same have the same address
    /** The URL of the stream, without the parameters that say where it began. */
    this.url = address.href;
    const ways = WAYS[options.shared ?? "auto"];
    if (!ways) throw new TypeError(`shared is one of ${Object.keys(WAYS).join(", ")}`);
    const user = String(options.user ?? "");
    this.#ways = kind && !user ? [] : [...ways]; // the streams of two users are never one
    this.#target = { address: this.url, user, kind, credentials: credentialsOf(options) };
    this.#listenToBrowser();
    this.#openLink();
  }

  /** The state of the connection: why it is not open, and when it is tried again. */
  get state() {
    return this.#state;
  }

  /** The readyState of an EventSource: 0 connecting or waiting, 1 open, 2 stopped or closed. */
  get readyState() {
    return { connecting: 0, waiting: 0, open: 1, stopped: 2, closed: 2 }[this.#state.name];
  }

  /** The position to resume after: `connect(url, { lastEventId })` goes on from here. */
  get lastEventId() {
    return this.#position;
  }

  /** The way in which the connection is shared: "worker", "locks", or "none". */
  get shared() {
    return this.#ways[0] ?? "none";
  }

  /** Reconnects now, whether waiting or stopped, for all tabs that share the connection. */
  reconnect() {
    this.#ownSource?.retry();
    this.#link?.send({ retry: true });
  }

  /** Closes the stream of this page; other tabs go on. */
  close() {
    this.#closeLink();
    this.#ended.abort();
    this.#state = { name: "closed" };
  }

  /**
   * Adds listeners to the page. A page that the browser freezes, or keeps for the back button, leaves the group, so that
   * it does not lead, and joins it again when it is shown.
   */
  #listenToBrowser() {
    const { signal } = this.#ended;
    for (const name of /** @type {const} */ (["open", "message", "error"])) {
      this.addEventListener(name, (event) => this[`on${name}`]?.(/** @type {MessageEvent} */ (event)));
    }
    const putAway = () => {
      this.#active = false;
      this.#closeLink();
    };
    const back = () => {
      if (!this.#active) this.#openLink();
      this.#active = true;
    };
    addEventListener("pagehide", putAway, { signal });
    addEventListener("pageshow", back, { signal });
    document.addEventListener("freeze", putAway, { signal });
    document.addEventListener("resume", back, { signal });
    document.addEventListener("visibilitychange", () => this.#checkLeader(), { signal });
    const asking = setInterval(() => this.#checkLeader(), ASK);
    signal.addEventListener("abort", () => clearInterval(asking));
  }

  #openLink() {
    this.#joined = false;
    const way = this.#ways[0];
    if (!way) return this.#readAlone();
    try {
      const Link = way === "worker" ? WorkerLink : LockLink;
      const [wanted, onNews] = [() => this.#wanted(), (/** @type {News} */ news) => this.#onNews(news)];
      this.#link = new Link(this.#target, { wanted, ask: this.#ask, onNews }, () => this.#fallBack());
    } catch {
      this.#fallBack(); // the browser does not have this way, or refuses it to this page
    }
  }

  #fallBack() {
    this.#closeLink();
    this.#ways.shift();
    this.#openLink();
  }

  #closeLink() {
    clearTimeout(this.#answerTimer);
    this.#answerTimer = undefined;
    this.#ownSource?.close();
    this.#ownSource = null;
    this.#link?.leave();
    this.#link = null;
  }

  /** @returns {Query} */
  #wanted() {
    const begin = this.#position ? { last_event_id: this.#position } : this.#begin;
    return this.#client ? { ...begin, client: this.#client } : begin;
  }

  /** Reads the hub over a connection of its own, from its position. */
  #readAlone() {
    this.#ownSource?.close();
    const own = new Source(this.#target, this.#wanted(), this.#ask, ({ state, batch }) => {
      if (own !== this.#ownSource) return;
      if (state) this.#setState(state);
      if (batch) this.#accept(batch);
      this.#rejoinGroup();
    });
    this.#ownSource = own;
    this.#setState(own.state);
  }

  /** Closes the own connection once this stream has got as far as the leader, and follows the leader again. */
  #rejoinGroup() {
    if (!this.#ownSource || !this.#joined || !reached(this.#position, this.#groupAt)) return;
    this.#ownSource.close();
    this.#ownSource = null;
    this.#setState(this.#groupState);
  }

  #checkLeader() {
    if (document.hidden || this.#answerTimer || !this.#link) return;
    this.#answerTimer = setTimeout(() => {
      this.#answerTimer = undefined;
      this.#link?.renew();
    }, ANSWER);
    this.#link.send({ ask: true });
  }

  /** @param {News} news */
  #onNews({ here, state, batch }) {
    clearTimeout(this.#answerTimer);
    this.#answerTimer = undefined;
    if (here) this.#onHere(here);
    if (state) this.#groupState = state;
    if (state?.name === "stopped" && !this.#position) this.#joined = false; // the next leader may begin elsewhere
    if (state && !this.#ownSource && (this.#joined || state.name !== "open")) this.#setState(state);
    if (batch) this.#follow(batch);
    this.#rejoinGroup();
  }

  /** @param {Here} here */
  #onHere({ state, at, welcome, opened }) {
    this.#groupState = state;
    this.#groupAt = at;
    if (opened) {
      this.#joined = true;
      this.#ownSource?.close();
      this.#ownSource = null;
      this.#position ||= at;
    }
    if (!this.#joined && welcome) this.#joinGroup(at, welcome);
    else if (this.#joined && !this.#ownSource && !level(this.#position, at)) return this.#readAlone();
    if (!this.#ownSource) this.#setState(state);
  }

  /**
   * Compares this stream's position with the leader's. A stream that has none, and asks for no past events, begins here.
   *
   * @param {string} at
   * @param {HubEvent} welcome
   */
  #joinGroup(at, welcome) {
    this.#joined = true;
    this.#client = JSON.parse(welcome.data).client;
    const wanted = this.#position || this.#begin.last_event_id;
    if (wanted ? wanted !== at : this.#begin.last || this.#begin.since) return this.#readAlone();
    this.#position = wanted || later(at, JSON.parse(welcome.data).top);
    this.#setState(this.#groupState);
    this.#dispatch(welcome);
  }

  /** @param {Batch} batch */
  #follow(batch) {
    this.#groupAt = batch.cursor;
    const welcome = batch.events.find(({ type }) => type === WELCOME);
    if (!this.#joined && welcome) {
      this.#joinGroup(batch.after, welcome);
      batch = { ...batch, events: batch.events.filter((event) => event !== welcome) };
    }
    if (!this.#joined || this.#ownSource) return;
    if (level(this.#position, batch.after)) this.#accept(batch);
    else this.#readAlone();
  }

  /** @param {Batch} batch */
  #accept({ after, events, cursor }) {
    const next = this.#position === after; // then all events are new, also a gap with an id before the position
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

  /** @param {HubEvent} event */
  #dispatch({ type, data, id }) {
    if (type === WELCOME) this.#onWelcome(JSON.parse(data));
    if (this.#state.name === "closed") return; // by a listener of an event before, or by this welcome
    const event = new MessageEvent(type, { data, lastEventId: id, origin: new URL(this.url).origin });
    try {
      this.onevent?.(event);
    } catch (error) {
      reportError(error); // as dispatchEvent does: an exception of the page must not end the stream
    }
    this.dispatchEvent(event);
  }

  /**
   * Closes the stream when it would go on as another user's, whose cookie or token the page now has: somebody else has
   * logged in in another tab, and this page is still that of the first user.
   *
   * @param {{ client: string, user?: string | null }} welcome
   */
  #onWelcome({ client, user }) {
    this.#client = client;
    const before = this.#user;
    this.#user ||= user ?? "";
    if (!before || !user || before === user || this.#state.name === "closed") return;
    this.close();
    this.#state = { name: "closed", reason: "user_changed", detail: "Another user has logged in." };
    this.dispatchEvent(new Event("error"));
  }

  /** @param {State} state */
  #setState(state) {
    const before = this.#state;
    if (before.name === "closed") return;
    this.#state = state;
    if (state.name === "open" && before.name !== "open") this.dispatchEvent(new Event("open"));
    const news = state.name === "waiting" ? before.until !== state.until : before.name !== state.name;
    if (news && (state.name === "waiting" || state.name === "stopped")) this.dispatchEvent(new Event("error"));
  }
}

/**
 * Returns which secret the connections of a stream need.
 *
 * @param {Options} options
 * @param {URLSearchParams} query of the stream's URL, which may have a ticket
 * @returns {Kind}
 */
function kindOf({ token, ticket }, query) {
  for (const [name, ask] of Object.entries({ token, ticket })) {
    if (ask != null && typeof ask !== "function") throw new TypeError(`${name} is a function that returns the ${name}`);
  }
  if ([...query.keys()].some((name) => IN_NO_URL.test(name))) {
    throw new TypeError("a URL is no place for a token: use the option");
  }
  if (!ticket && !query.has("ticket")) return token ? "token" : "";
  if (token) throw new TypeError("a stream has a token or a ticket, not both");
  return "ticket";
}

/**
 * Returns what asks the page for a secret. The page hears of an error of its function as of any other: it is reported.
 *
 * @param {Options["token"] | ""} from the page's function
 * @param {string | null} first the secret that is there before the function is asked
 * @param {Kind} kind
 * @returns {Ask}
 */
function asking(from, first, kind) {
  return async (refresh) => {
    const given = from && refresh ? null : first; // by now it is an old one
    if (from) first = null;
    try {
      const secret = given || (from && (await within(SECRET_WAIT, from({ refresh }))));
      if (typeof secret === "string" && /^[\x21-\x7e]+$/.test(secret)) return secret;
      throw new TypeError(`${kind} returned no ${kind}: it is a string of visible ASCII characters`);
    } catch (error) {
      reportError(error);
      throw error;
    }
  };
}

/** Resolves or rejects as `work` does, and rejects when that takes longer than `ms`. */
async function within(/** @type {number} */ ms, /** @type {any} */ work) {
  let timer = 0;
  const error = new Error(`no answer within ${ms / 1_000} s`);
  const late = new Promise((_, reject) => (timer = setTimeout(reject, ms, error)));
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

/** @returns {RequestCredentials} */
function credentialsOf(/** @type {Options} */ { credentials = "same-origin" }) {
  const known = ["same-origin", "include", "omit"];
  if (!known.includes(credentials)) throw new TypeError(`credentials is one of ${known.join(", ")}`);
  return credentials;
}

/** @type {Record<string, ("worker" | "locks")[]>} */
const WAYS = { auto: ["worker", "locks"], worker: ["worker"], locks: ["locks"], none: [] };

/** Returns the name of the worker, the lock and the channel of those that share. */
function nameOf(/** @type {Target} */ target) {
  return `${PROTOCOL} ${JSON.stringify(target)}`;
}

/** The link to a SharedWorker that leads. The worker finds its target in its name, and asks the tabs for secrets. */
class WorkerLink {
  /** @type {MessagePort | undefined} */
  #port;
  #release = () => {};

  /**
   * @param {Target} target
   * @param {Tab} tab
   * @param {() => void} failed
   */
  constructor(target, tab, failed) {
    this.target = target;
    this.tab = tab;
    this.failed = failed;
    this.renew();
  }

  /** Connects to the worker again, which starts one when the old one died. */
  renew() {
    this.leave();
    const worker = new SharedWorker(import.meta.url, { type: "module", name: nameOf(this.target) });
    const port = (this.#port = worker.port);
    // Called when the script does not load. Errors of the worker itself do not arrive here.
    worker.onerror = () => port === this.#port && this.failed();
    port.onmessage = (message) => port === this.#port && this.#onMessage(message);
    // This page holds a lock of its own as long as it lives. The worker requests it, and gets it when the page is gone.
    const life = `${PROTOCOL} ${Math.random()}`;
    const join = () => port === this.#port && port.postMessage({ join: this.tab.wanted(), life });
    if (!navigator.locks) return void join();
    navigator.locks.request(life, () => {
      join();
      return /** @type {Promise<void>} */ (new Promise((resolve) => (this.#release = resolve)));
    });
  }

  /** @param {MessageEvent} message news, or with a port for the answer the question for a secret */
  async #onMessage({ data, ports: [reply] }) {
    if (!reply) return this.tab.onNews(data);
    reply.postMessage(await this.tab.ask(data.refresh).catch(() => null));
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

/** Runs in the worker: keeps one connection to the hub as long as a tab is connected to the worker. */
function serve(/** @type {Target} */ target) {
  const ports = new Ports();
  /** @type {Source | null} */
  let source = null;
  const leave = (/** @type {MessagePort} */ port) => {
    if (!ports.delete(port) || ports.size) return;
    source?.close();
    source = null;
  };
  const answer = (/** @type {MessagePort} */ port, /** @type {any} */ { join, life, ask, retry, leave: goes }) => {
    if (join) {
      if (source?.state.name === "stopped" && !source.retryForNewTab()) source = null;
      const opened = !source;
      source ??= new Source(target, join, (refresh) => ports.ask(refresh), (news) => ports.broadcast(news));
      ports.add(port);
      port.postMessage({ here: { ...source.here(), opened } });
      navigator.locks?.request(life, () => leave(port));
    }
    if (ask && source) port.postMessage({ here: source.here() });
    if (retry) ports.prefer(port);
    if (retry) source?.retry();
    if (goes) leave(port);
  };
  addEventListener("connect", (event) => {
    const [port] = /** @type {MessageEvent} */ (event).ports;
    if (port) port.onmessage = ({ data }) => answer(port, data);
  });
}

/** The tabs that are connected to the worker. */
class Ports {
  /** @type {Map<MessagePort, AbortController>} */
  #open = new Map(); // the last one is that which came, asked for a retry, or had a secret last

  get size() {
    return this.#open.size;
  }

  add(/** @type {MessagePort} */ port) {
    this.#open.set(port, new AbortController());
  }

  /** Makes a tab that is there the last, which is asked first. */
  prefer(/** @type {MessagePort} */ port) {
    const gone = this.#open.get(port);
    if (gone && this.#open.delete(port)) this.#open.set(port, gone);
  }

  /** Removes a tab, and returns whether it was there. */
  delete(/** @type {MessagePort} */ port) {
    this.#open.get(port)?.abort();
    return this.#open.delete(port);
  }

  broadcast(/** @type {News} */ news) {
    for (const port of this.#open.keys()) port.postMessage(news);
  }

  /** @type {Ask} Asks one tab after the other, the last one first: its user may have logged in just now. */
  async ask(refresh) {
    for (const [port, { signal }] of [...this.#open].reverse()) {
      const secret = await askTab(port, signal, refresh).catch(() => null);
      if (secret === null) continue;
      this.prefer(port);
      return secret;
    }
    throw new Error("no tab has one");
  }
}

/**
 * Returns the secret that a tab's function returned, or null when that has failed.
 *
 * @param {MessagePort} port
 * @param {AbortSignal} gone aborted when the tab is gone
 * @param {boolean} refresh
 * @returns {Promise<string | null>}
 */
function askTab(port, gone, refresh) {
  const { port1, port2 } = new MessageChannel();
  const answer = new Promise((resolve) => {
    port1.onmessage = ({ data }) => resolve(data);
    gone.addEventListener("abort", () => resolve(null));
    if (gone.aborted) resolve(null);
  });
  port.postMessage({ refresh }, [port2]);
  return within(SECRET_WAIT, answer).finally(() => port1.close());
}

/** The link to the tab that holds the Web Lock and leads: another tab, or this one once it gets the lock. */
class LockLink {
  /** @type {Source | null} */
  #source = null;
  #release = () => {};
  #queued = new AbortController();
  #left = false;
  #joining = true; // until the leader has answered
  #refused = false; // true while the leader has stopped, or got no secret
  /** @type {Query | null} */
  #from = null; // where to lead from, in place of a leader that has stopped

  /**
   * @param {Target} target
   * @param {Tab} tab
   */
  constructor(target, tab) {
    this.target = target;
    this.tab = tab;
    this.name = nameOf(target);
    if (!navigator.locks) throw new Error("no Web Locks");
    this.channel = new BroadcastChannel(this.name);
    this.channel.onmessage = ({ data }) => this.#onMessage(data);
    this.#queue({ signal: this.#queued.signal });
    this.#join();
  }

  /**
   * Asks the leader for its position, once this tab waits for the lock. Asked before, a leader that yields to this tab
   * would get the lock again itself.
   */
  async #join() {
    await navigator.locks.query();
    if (!this.#left && !this.#source) this.send({ ask: true, join: true });
  }

  /** Takes the lock from the leader: it does not answer, or is refused what this tab may get. */
  renew() {
    this.#queued.abort();
    this.#queued = new AbortController();
    this.#queue({ steal: true });
  }

  /** @param {Question} question */
  send(question) {
    if (this.#source) this.#answer(question, this.tab.onNews);
    else if (question.retry && this.#mayLeadBetter()) this.renew();
    else this.channel.postMessage(question);
  }

  /** Returns true while the leader gets no stream and this tab has a secret of its own, which may be a better one. */
  #mayLeadBetter() {
    return this.#refused && this.target.kind !== "";
  }

  leave() {
    this.#left = true;
    this.#queued.abort();
    this.#resign();
    this.channel.close();
  }

  /** @param {LockOptions} options */
  #queue(options) {
    navigator.locks.request(this.name, options, () => this.#lead()).catch(() => this.#onStolen());
  }

  #lead() {
    if (this.#left) return;
    const from = this.#from;
    this.#from = null;
    const source = new Source(this.target, from ?? this.tab.wanted(), this.tab.ask, (news) => {
      if (source !== this.#source) return;
      this.channel.postMessage(news);
      this.tab.onNews(news);
    });
    this.#source = source;
    this.tab.onNews({ here: { ...source.here(), opened: !from } });
    this.channel.postMessage({ here: source.here() });
    return /** @type {Promise<void>} */ (new Promise((resolve) => (this.#release = resolve)));
  }

  /** Called when another tab took the lock, since this one had not answered. */
  #onStolen() {
    if (this.#source) this.#yieldLead(); // else this tab was only waiting for the lock
  }

  /** Lets another tab lead. */
  #yieldLead() {
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
  #onMessage(message) {
    if (this.#source) this.#answer(message, (news) => this.channel.postMessage(news));
    else if (!message.ask && !message.retry) this.#onNews(message);
  }

  /**
   * Follows the leader. A tab that finds it refused, and has a secret of its own, leads from where the others are.
   *
   * @param {News} news
   */
  #onNews(news) {
    const { here, state = here?.state } = news;
    if (state) this.#refused = state.name === "stopped" || state.reason === failed(this.target.kind);
    const joining = this.#joining && here;
    if (here) this.#joining = false;
    if (!joining || !this.#mayLeadBetter()) return this.tab.onNews(news);
    const { at, welcome } = here;
    if (welcome) this.#from = { last_event_id: at, client: JSON.parse(welcome.data).client };
    this.renew();
  }

  /**
   * @param {Question} question
   * @param {(news: News) => void} reply
   */
  #answer({ ask, retry, join }, reply) {
    if (ask && this.#source) reply({ here: this.#source.here() });
    if (retry) this.#source?.retry();
    if (this.target.kind) return; // a tab that joins has a secret of its own, and leads if this one has stopped
    if (join && this.#source?.state.name === "stopped" && !this.#source.retryForNewTab()) this.#yieldLead();
  }
}

/** The secret of a source's connections: a token asked for before each one, or a ticket kept until one is refused. */
class Credential {
  /** True when the secret was asked for as a new one: to be refused with it is final. */
  isNew = false;
  #secret = "";
  #renew = false; // true when the next secret must be a new one

  /**
   * @param {Kind} kind
   * @param {Ask} ask
   */
  constructor(kind, ask) {
    this.kind = kind;
    this.ask = ask;
  }

  /** Makes the next secret a new one. */
  renew() {
    this.#renew = this.kind !== "";
  }

  /** Drops a kept ticket: once the user has logged in again, there is another one. */
  forget() {
    this.#secret = "";
  }

  /** Returns the secret for the next connection, "" when it needs none. Throws AskFailed. */
  async get() {
    this.isNew = this.#renew;
    const kept = this.kind === "ticket" && !this.#renew ? this.#secret : "";
    if (this.kind && !kept) {
      this.#secret = await this.ask(this.isNew).catch(() => Promise.reject(new AskFailed(this.kind)));
    }
    this.#renew = false;
    return this.#secret;
  }
}

/** The page's function for a token or a ticket has thrown, or returned none. */
class AskFailed extends Error {
  constructor(/** @type {Kind} */ kind) {
    super(`The page got no ${kind} for the hub.`);
    this.reason = failed(kind);
  }
}

/** Returns the reason of a state in which the page's function has failed. */
function failed(/** @type {Kind} */ kind) {
  return `${kind}_failed`;
}

/** A connection to the hub, which is opened again after its end and resumes after the last event. */
class Source {
  /** @type {State} */
  state = { name: "connecting" };
  /** @type {HubEvent | null} */
  welcome = null; // the newest
  #retry = between(...RETRY);
  #failures = 0; // in a row, without a welcome
  #silence = SILENCE; // until a welcome says how often the hub sends a heartbeat
  #closed = false;
  #openedAt = 0; // as Date.now() counts
  #reason = ""; // of the last bye since the last welcome
  #atOnce = false; // true when the next connection need not wait
  #cut = new AbortController();
  #watchdog = 0; // the timer that cuts a silent connection
  #wake = () => {};
  /** @type {{ end: string | null, top: string } | null} */
  #replay = null; // until all publications up to the top of the log have come

  /**
   * @param {Target} target
   * @param {Query} query where to begin
   * @param {Ask} ask
   * @param {(news: News) => void} onNews
   */
  constructor(target, query, ask, onNews) {
    this.target = target;
    this.query = query;
    this.credential = new Credential(target.kind, ask);
    this.onNews = onNews;
    /** The position up to which all publications have come. */
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
   * Retries a stopped source for a tab that is new, since its user may have logged in. Closes a source that was never
   * connected and returns false: its begin may be what the hub refused, and the new tab may have another.
   */
  retryForNewTab() {
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
    await null; // the caller of the constructor must have the source before the first news
    while (!this.#closed) {
      if (this.state.name !== "connecting") this.#set({ name: "connecting" });
      this.#cut = new AbortController();
      this.#atOnce = false;
      const { why, after } = await this.#read().catch((error) => ({ why: whyOf(error, this.state), after: 0 }));
      this.#cut.abort();
      if (!this.#closed && !this.#atOnce) await this.#pause({ why: { ...this.#farewell(), ...why }, after });
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
      this.credential.forget();
      this.#set({ name: "stopped", ...why });
      return woken;
    }
    const wait = Math.max(this.#retry, after, backoff(this.#failures, this.#retry));
    this.#failures += 1;
    const timer = setTimeout(this.#wake, wait);
    this.#set({ name: "waiting", until: Date.now() + wait, ...why });
    await woken;
    clearTimeout(timer);
  }

  /**
   * Reads one connection to its end, and returns why it ended.
   *
   * @returns {Promise<Ending>}
   */
  async #read() {
    try {
      const response = await this.#connect(this.#cut.signal);
      this.#watch();
      if (!response.body || !isStream(response)) return await explain(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new Parser();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return { why: { detail: FAREWELLS.get(this.#reason) ?? "The hub ended the stream." } };
        if (this.#closed) return { why: {} };
        this.#onBlocks(parser.feed(value));
        this.#watch();
        if (parser.retry !== null) this.#retry = Math.min(Math.max(parser.retry, RETRY_MIN), RETRY_MAX);
      }
    } finally {
      clearTimeout(this.#watchdog);
    }
  }

  /**
   * Gives the connection up when nothing comes from now on: after a computer's sleep, or in a broken network, it may stay
   * open and silent for ever.
   */
  #watch() {
    clearTimeout(this.#watchdog);
    const cut = this.#cut;
    this.#watchdog = setTimeout(() => cut.abort(SILENT), this.#silence);
  }

  /**
   * Returns the hub's answer. A secret that it refuses is replaced by a new one, once.
   *
   * @param {AbortSignal} signal
   */
  async #connect(signal) {
    const secret = await this.credential.get();
    const answer = await this.#request(secret, signal);
    if (answer.status !== 401 || !secret || this.credential.isNew) return answer;
    this.credential.renew();
    const other = await this.credential.get();
    if (other === secret) return answer;
    answer.body?.cancel().catch(() => {});
    return this.#request(other, signal);
  }

  /**
   * @param {string} secret
   * @param {AbortSignal} signal
   */
  #request(secret, signal) {
    const { address, kind, credentials } = this.target;
    const headers = new Headers({ Accept: "text/event-stream" }); // then a full hub answers a stream with a retry time
    /** @type {Query} */
    const query = this.cursor ? { ...this.query, last_event_id: this.cursor } : { ...this.query };
    if (kind === "token") headers.set("Authorization", `Bearer ${secret}`);
    if (kind === "ticket") query.ticket = secret;
    const url = new URL(address);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    this.#watch();
    return fetch(url, { headers, credentials, cache: "no-store", signal }).finally(() => clearTimeout(this.#watchdog));
  }

  /** @param {Block[]} blocks */
  #onBlocks(blocks) {
    const after = this.cursor;
    /** @type {HubEvent[]} */
    const events = [];
    for (const { type, data, id } of blocks) {
      this.cursor = id ?? this.cursor;
      if (data === null) continue; // a block without data only moves the cursor
      const event = { type, data, id: this.cursor };
      events.push(event);
      if (type === WELCOME) this.#onWelcome(event);
      if (type === BYE) this.#onBye(reasonIn(data));
    }
    if (this.#replay && (this.#replay.end === null || reached(this.cursor, this.#replay.end))) {
      this.cursor = later(this.cursor, this.#replay.top);
      this.#replay = null;
    }
    if (events.length || this.cursor !== after) this.onNews({ batch: { after, events, cursor: this.cursor } });
  }

  /** @param {HubEvent} welcome */
  #onWelcome(welcome) {
    const { client, last, top, heartbeat } = JSON.parse(welcome.data);
    this.welcome = welcome;
    this.#failures = 0;
    this.#openedAt = Date.now();
    this.#reason = "";
    this.query = { client };
    this.#silence = Math.min(Math.max(SILENCE, 3_000 * heartbeat || 0), TIMER_MAX);
    this.#replay = { end: last?.id ?? null, top };
    this.#set({ name: "open" });
  }

  /**
   * Does what the reason of an end asks for. A token that has expired is replaced at once, unless the hub had accepted
   * it just before: the page's clock or its function may be wrong, and each new token would end the same way.
   *
   * @param {string} reason
   */
  #onBye(reason) {
    this.#reason = reason;
    if (RENEWED.has(reason)) this.credential.renew();
    this.#atOnce = reason === EXPIRED && this.target.kind !== "" && Date.now() - this.#openedAt >= RETRY[1];
  }

  #farewell() {
    return this.#reason ? { reason: this.#reason } : {};
  }

  /** @param {State} state */
  #set(state) {
    this.state = state;
    this.onNews({ state });
  }
}

/**
 * Returns the ms to wait, beside those that the hub asks for, after a failure that follows so many others: none at first,
 * then `retry` doubled each time up to a bound, and at random in the upper half, so that not all come back at once. The
 * Python client waits by the same rule (sse_app/backoff.py, sse_app/client/stream.py).
 */
function backoff(/** @type {number} */ failures, /** @type {number} */ retry) {
  const [first, most] = BACKOFF;
  return failures ? Math.min(most, Math.max(first, retry) * 2 ** failures) * between(0.5, 1) : 0;
}

function between(/** @type {number} */ low, /** @type {number} */ high) {
  return low + (high - low) * Math.random();
}

const SILENT = new Error("Nothing has come from the hub for too long.");

/** Returns the reason in the data of a bye, "" when it has none. */
function reasonIn(/** @type {string} */ data) {
  try {
    return String(JSON.parse(data).reason ?? "");
  } catch {
    return ""; // another server's bye
  }
}

/** @returns {Partial<State>} */
function whyOf(/** @type {unknown} */ error, /** @type {State} */ state) {
  if (error instanceof AskFailed) return { detail: error.message, reason: error.reason };
  if (error === SILENT) return { detail: SILENT.message };
  return { detail: state.name === "open" ? "The connection was lost." : "The hub cannot be reached." };
}

/** Returns true for an answer that EventSource would read (WHATWG HTML 9.2.3). */
function isStream(/** @type {Response} */ response) {
  return response.status === 200 && /^text\/event-stream\s*(;|$)/i.test(response.headers.get("Content-Type") ?? "");
}

/** Returns true when a retry would get the same answer. With 204 a server ends a stream (WHATWG HTML 9.2.3). */
function isFinal(/** @type {number | undefined} */ status = 0) {
  return status === 204 || (status >= 400 && status < 500 && !TIMELY.has(status));
}

/**
 * Returns the reason in an answer that is no stream: the hub's problem details, or only a status.
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

/** Returns the ms that Retry-After asks to wait: seconds, or a date by the sender's clock (RFC 9110 10.2.3). */
function retryAfter(/** @type {Headers} */ headers) {
  const asked = headers.get("Retry-After") ?? "";
  const sent = Date.parse(headers.get("Date") ?? "") || Date.now(); // pages may not read the Date of another origin
  const wait = /^[0-9]+$/.test(asked) ? Number(asked) * 1_000 : / GMT$/.test(asked) ? Date.parse(asked) - sent : 0;
  return Math.min(wait || 0, RETRY_MAX);
}

/**
 * A parser of text/event-stream (WHATWG HTML 9.2.6).
 *
 * @typedef {{ type: string, data: string | null, id: string | null }} Block without data it only moves the cursor
 */
class Parser {
  /** @type {number | null} */
  retry = null; // ms; the reconnection time that the stream named last
  #line = ""; // the beginning of an incomplete line
  #halfEnd = false; // true after a CR at the end of a piece: a LF that follows belongs to it
  #type = "";
  /** @type {string[]} */
  #data = [];
  /** @type {string | null} */
  #id = null;

  /**
   * @param {string} text the next piece, of any length
   * @returns {Block[]} the blocks that it completes
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
 * Returns true when `position` is at `id` or behind it in the same log; false for positions of two logs.
 *
 * @param {string} position
 * @param {string} id
 */
function reached(position, id) {
  const [a, b] = [position.lastIndexOf("-"), id.lastIndexOf("-")];
  if (a < 0 || a !== b || position.slice(0, a) !== id.slice(0, b)) return false;
  return Number(position.slice(a + 1)) >= Number(id.slice(b + 1));
}

/** Returns true when events that follow `after` leave out nothing for a stream at `position`. */
function level(/** @type {string} */ position, /** @type {string} */ after) {
  return position === after || reached(position, after);
}

/** Returns the later of two positions; the second when they are of two logs. */
function later(/** @type {string} */ a, /** @type {string} */ b) {
  return reached(a, b) ? a : b;
}

// True in the SharedWorker that WorkerLink starts, which has this name and no document.
const loadedAs = /** @type {{ name?: unknown }} */ (globalThis).name;
if (!("document" in globalThis) && typeof loadedAs === "string" && loadedAs.startsWith(`${PROTOCOL} `)) {
  serve(JSON.parse(loadedAs.slice(PROTOCOL.length + 1)));
}
