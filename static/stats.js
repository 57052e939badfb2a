/** The hub's statistics, fetched while the page is visible, and shown. */
import { PING } from "./connection.js";
import { byId, element } from "./element.js";
import { call } from "./hub.js";
import { isAfter, parsePosition } from "./position.js";
import { session } from "./session.js";
import { ago, duration } from "./times.js";

const EVERY = 2000; // ms
const SOON = 150; // ms; a burst of events causes one request
const NOT_GRANTED = "not granted to you";

/** Calls `show(stats)` every two seconds while the page is visible and `active` is true; `failed(error)` for a HubError. */
export class Poll {
  #timer = 0;
  #due = 0;
  #busy = false;
  #active = false;

  constructor(show, failed) {
    this.show = show;
    this.failed = failed;
    document.addEventListener("visibilitychange", () => this.#plan(0));
  }

  /** Set to true while the hub can be reached. */
  set active(active) {
    this.#active = active;
    this.#plan(0);
  }

  /** Fetches after SOON rather than at the next regular turn. */
  soon() {
    if (this.#due - Date.now() > SOON) this.#plan(SOON);
  }

  #plan(delay) {
    clearTimeout(this.#timer);
    if (!this.#active || document.hidden) return;
    this.#due = Date.now() + delay;
    this.#timer = setTimeout(() => this.#refresh(), delay);
  }

  async #refresh() {
    if (!this.#busy) {
      this.#busy = true;
      await this.#fetch();
      this.#busy = false;
    }
    this.#plan(EVERY);
  }

  async #fetch() {
    const turn = session.turn;
    const stats = await call("stats").catch((error) => turn === session.turn && this.failed(error));
    if (stats && turn === session.turn) this.show(stats);
  }
}

/** The tiles, the list of subscriptions and the footer. */
export class Overview {
  #last = null;

  constructor() {
    setInterval(() => this.#age(), 1000);
  }

  /** Shows the number of clients: of the statistics, or of a welcome, which comes sooner. null: the hub does not tell. */
  clients(count) {
    byId("clients").textContent = count?.toLocaleString() ?? "–";
    byId("clients-note").textContent = count === null ? NOT_GRANTED : count === 1 ? "only this tab: open a second one" : "including this tab";
  }

  /** Shows that the hub does not tell its statistics. */
  refused() {
    this.clients(null);
    byId("published").textContent = "–";
    byId("published-note").textContent = NOT_GRANTED;
    byId("listeners").replaceChildren(note("The hub's statistics are not granted to you."));
    byId("facts").textContent = "";
  }

  /** Forgets what was shown to somebody else. */
  reset() {
    this.#last = null;
    byId("clients").textContent = byId("published").textContent = "–";
    byId("clients-note").textContent = "including this tab";
    byId("published-note").textContent = "since the server started";
    byId("last-data").textContent = "Nothing published yet";
    byId("last-note").textContent = "The first message will show here at once.";
    byId("listeners").replaceChildren(note("Waiting for the hub's statistics."));
    byId("facts").textContent = "";
  }

  /** Shows the last message when it is newer than the one shown: { id, topics, event, data, time }. */
  message(last) {
    if (!last || last.event === PING || (this.#last && this.#last.id !== last.id && !isAfter(last.id, this.#last.id))) return;
    this.#last = { ...(this.#last?.id === last.id ? this.#last : {}), ...last };
    byId("last-data").textContent = this.#last.data || "(empty)";
    this.#age();
  }

  show(stats) {
    this.clients(stats.subscribers);
    if (stats.lagging) byId("clients-note").textContent = `${stats.lagging.toLocaleString()} behind, reading on from the log`;
    this.message(stats.last);
    this.#removeExpired(stats);
    const { published, delivered } = stats.totals;
    byId("published").textContent = published.toLocaleString();
    byId("published-note").textContent = `${delivered.toLocaleString()} deliveries in ${duration(stats.uptime)}`;
    byId("listeners").replaceChildren(...listeners(stats.filters));
    const versions = Object.entries(stats.versions ?? {}).map(([name, version]) => `${name} ${version}`);
    byId("facts").textContent = [...versions, isAfter(stats.oldest, stats.top) ? "log empty" : `log ${stats.oldest} to ${stats.top}`].join(" · ");
  }

  /** Removes the last message from the page when the log no longer holds it: it is empty, expired or a new one. */
  #removeExpired({ oldest, top, totals }) {
    if (!isAfter(oldest, top) || (this.#last && isLaterInTheSameLog(this.#last.id, top))) return;
    this.#last = null;
    byId("last-data").textContent = totals.published ? "The log is empty" : "Nothing published yet";
    byId("last-note").textContent = totals.published ? "What was published is no longer held." : "The first message will show here at once.";
  }

  #age() {
    if (!this.#last) return;
    const { event, topics, time } = this.#last;
    byId("last-note").textContent = [event, topics?.join(", "), time && ago(new Date(time))].filter(Boolean).join(" · ");
  }
}

function isLaterInTheSameLog(id, other) {
  return parsePosition(id)?.epoch === parsePosition(other)?.epoch && isAfter(id, other);
}

/** The rows of the filters, which not everyone may see. */
function listeners(filters) {
  if (!filters) return [note("What others listen to is not granted to you.")];
  const most = Math.max(...filters.map((filter) => filter.subscribers));
  const rows = filters.toSorted((a, b) => b.subscribers - a.subscribers).map(({ topics, subscribers }) => {
    const name = topics.length ? topics.join(" ") : "everything";
    const bar = element("meter", { min: 0, max: most, value: subscribers, "aria-hidden": "true" });
    return element("li", {}, element("span", { class: topics.length ? "filter" : "filter quiet", title: name }, name), bar, element("span", { class: "value" }, subscribers.toLocaleString()));
  });
  return rows.length ? rows : [note("Nobody is connected.")];
}

function note(text) {
  return element("li", { class: "note" }, text);
}
