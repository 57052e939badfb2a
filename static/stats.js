/** The hub's statistics, fetched while the page is visible, and shown. */
import { PING } from "./connection.js";
import { byId, element } from "./element.js";
import { call } from "./hub.js";
import { isAfter, parsePosition } from "./position.js";

const EVERY = 2000; // ms
const SOON = 150; // ms; a burst of events causes one request
const AGO = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "long" });

/** Calls `show(stats)` every two seconds while the page is visible and `active` is true. */
export class Poll {
  #timer = 0;
  #due = 0;
  #busy = false;
  #active = false;

  constructor(show) {
    this.show = show;
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
    try {
      this.show(await call("stats"));
    } catch {
      // The connection's state says that the hub cannot be reached.
    }
  }
}

/** The tiles, the list of subscriptions and the footer. */
export class Overview {
  #last = null;

  constructor() {
    setInterval(() => this.#age(), 1000);
  }

  /** Shows the number of clients: of the statistics, or of a welcome, which comes sooner. */
  clients(count) {
    byId("clients").textContent = count.toLocaleString();
    byId("clients-note").textContent = count === 1 ? "only this tab: open a second one" : "including this tab";
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

function listeners(filters) {
  const most = Math.max(...filters.map((filter) => filter.subscribers));
  const rows = filters.toSorted((a, b) => b.subscribers - a.subscribers).map(({ topics, subscribers }) => {
    const name = topics.length ? topics.join(" ") : "everything";
    const bar = element("meter", { min: 0, max: most, value: subscribers, "aria-hidden": "true" });
    return element("li", {}, element("span", { class: topics.length ? "filter" : "filter quiet", title: name }, name), bar, element("span", { class: "value" }, subscribers.toLocaleString()));
  });
  return rows.length ? rows : [element("li", { class: "note" }, "Nobody is connected.")];
}

function ago(date) {
  const seconds = Math.max(0, Math.round((Date.now() - date) / 1000)); // never the future, when two clocks differ
  if (seconds < 2) return "just now";
  if (seconds < 60) return AGO.format(-seconds, "second");
  if (seconds < 3600) return AGO.format(-Math.floor(seconds / 60), "minute");
  if (seconds < 86_400) return AGO.format(-Math.floor(seconds / 3600), "hour");
  return AGO.format(-Math.floor(seconds / 86_400), "day");
}

function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}
