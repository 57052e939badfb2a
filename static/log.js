/** The event log: a bounded list of rows that follows its end until the reader scrolls up. */
import { Cursor } from "./cursor.js";
import { byId, showText } from "./element.js";
import { UnseenGaps } from "./gaps.js";
import { parsePosition } from "./position.js";
import { eventRow, fillIn } from "./row.js";

const ROWS = 500;
const FACTS = 5000; // publications whose facts are kept: seen, topics, time, sent by this tab
const FLUSH = 16; // ms; events of one burst are drawn together
const AT_END = 24; // pixels

export class Log {
  #entries = []; // as shown, oldest first; each has its row
  #waiting = []; // arrived and not yet shown
  #facts = new Map(); // id -> facts
  #paused = false;
  #following = true;
  #reading = false; // by keyboard, a row that is not the last
  #below = 0; // rows that came while the reader was further up
  #needle = "";
  #timer = 0;

  constructor() {
    this.list = byId("rows");
    this.list.addEventListener("scroll", () => this.#scrolled());
    this.list.addEventListener("toggle", (event) => this.#toggled(event.target), true); // it does not bubble
    this.list.addEventListener("focusout", ({ relatedTarget }) => this.#read(this.#reading && this.list.contains(relatedTarget)));
    this.cursor = new Cursor(this.list, (row, isLast) => this.#read(!isLast));
    this.gaps = new UnseenGaps(this.list, () => this.#showJumps());
    byId("jump").addEventListener("click", () => {
      this.#follow();
      this.cursor.focus();
    });
    byId("jump-gap").addEventListener("click", () => this.#goTo(this.gaps.elsewhere[0]));
    byId("search").addEventListener("input", (event) => this.#filter(event.target.value));
    byId("pause").addEventListener("click", () => this.#pause(!this.#paused));
    byId("clear").addEventListener("click", () => this.#clear());
  }

  /** Shows an event, each id once. Returns false for one that was shown before. */
  add(event) {
    const facts = this.#factsOf(event.id);
    if (facts.seen) return false;
    facts.seen = true;
    this.#wait({ ...event, received: new Date(), position: parsePosition(event.id) });
    return true;
  }

  /** Shows a row that is not an event. A gap is shown under every filter, since missing events might match it. */
  addRow(row, { gap = false } = {}) {
    this.#wait({ row, gap, words: row.textContent });
  }

  /** Returns true when the topics of this publication are known. */
  hasTopics(id) {
    return Boolean(this.#facts.get(id)?.topics);
  }

  /** Stores facts of a publication (topics, time, own), and shows them in its row if it has one. */
  update(id, news) {
    const facts = this.#factsOf(id);
    if (Object.entries(news).every(([key, value]) => key in facts && String(facts[key]) === String(value))) return;
    Object.assign(facts, news);
    const entry = facts.entry;
    if (!entry) return;
    fillIn(entry.row, { ...entry, ...facts });
    this.#match(entry);
  }

  #factsOf(id) {
    let facts = this.#facts.get(id);
    if (!facts) {
      this.#facts.set(id, (facts = {}));
      if (this.#facts.size > FACTS) this.#facts.delete(this.#facts.keys().next().value);
    }
    return facts;
  }

  #wait(entry) {
    this.#waiting.push(entry);
    if (this.#waiting.length > ROWS) this.#waiting.splice(Math.max(0, this.#waiting.findIndex(({ gap }) => !gap)), 1);
    if (this.#paused) return this.#showPaused();
    this.#timer ||= setTimeout(() => this.#flush(), FLUSH);
  }

  #flush() {
    this.#timer = 0;
    if (this.#paused) return;
    for (const entry of this.#waiting) this.#insert(entry);
    if (!this.#following) this.#below += this.#waiting.length;
    this.#waiting = [];
    for (const old of this.#entries.splice(0, this.#entries.length - ROWS)) this.#remove(old);
    this.#show();
  }

  #insert(entry) {
    if (!entry.row) {
      const facts = this.#factsOf(entry.id);
      entry.row = eventRow({ ...entry, ...facts });
      facts.entry = entry;
    }
    const index = this.#placeOf(entry);
    this.list.insertBefore(entry.row, this.#entries[index]?.row ?? null);
    this.#entries.splice(index, 0, entry);
    if (entry.gap) this.gaps.add(entry.row);
    this.#match(entry);
  }

  /** Rows come in the order of the log; an event that the browser had skipped takes its place between older rows. */
  #placeOf({ position }) {
    let index = this.#entries.length;
    if (!position) return index;
    for (let i = index - 1; i >= 0; i -= 1) {
      const other = this.#entries[i].position;
      if (!other) continue;
      if (other.epoch !== position.epoch || other.offset < position.offset) break;
      index = i;
    }
    return index;
  }

  #remove(entry) {
    this.cursor.beforeRemove(entry.row);
    this.gaps.delete(entry.row);
    entry.row.remove();
    if (entry.id) this.#factsOf(entry.id).entry = null;
  }

  #match(entry) {
    entry.row.hidden = Boolean(this.#needle) && !entry.gap && !this.#textOf(entry).includes(this.#needle);
  }

  #textOf(entry) {
    if (entry.words) return entry.words.toLowerCase();
    const topics = this.#facts.get(entry.id)?.topics ?? [];
    return `${entry.type}\n${topics.join("\n")}\n${entry.id}\n${entry.data}`.toLowerCase();
  }

  #filter(text) {
    this.#needle = text.trim().toLowerCase();
    for (const entry of this.#entries) this.#match(entry);
    this.#follow();
  }

  #pause(paused) {
    this.#paused = paused;
    byId("pause").setAttribute("aria-pressed", paused);
    if (paused) this.#showPaused();
    else this.#flush();
  }

  /** Forgets everything, also what was shown. */
  reset() {
    this.#clear();
    this.#facts.clear();
  }

  #clear() {
    for (const entry of this.#entries) this.#remove(entry);
    this.#entries = [];
    this.#waiting = [];
    this.#below = 0;
    this.#reading = false;
    this.#following = true;
    this.#show();
  }

  #scrolled() {
    const following = !this.#reading && this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < AT_END;
    if (following === this.#following) return this.#showJumps();
    this.#following = following;
    if (following) this.#below = 0;
    this.#show();
  }

  /** Sets whether a row is read by keyboard: new rows then do not scroll it away, even the last one. */
  #read(reading) {
    this.#reading = reading;
    this.#scrolled();
  }

  #goTo(row) {
    row.scrollIntoView({ block: "center" });
    this.cursor.focus(row);
    this.#read(true);
  }

  /** An opened row comes into view, and the next event must not scroll it away. */
  #toggled(details) {
    requestAnimationFrame(() => {
      if (details.open) details.closest(".row").scrollIntoView({ block: "nearest" });
      this.#scrolled();
    });
  }

  #follow() {
    this.#reading = false;
    this.#following = true;
    this.#below = 0;
    this.#show();
  }

  #showPaused() {
    const waiting = this.#waiting.length;
    const gap = this.#waiting.some(({ gap }) => gap) ? ", with a gap" : "";
    byId("pause").textContent = waiting ? `Resume (${waiting < ROWS ? waiting : `${ROWS}+`} new${gap})` : "Resume";
  }

  #show() {
    const events = this.#entries.filter((entry) => entry.id);
    const shown = this.#entries.filter((entry) => !entry.row.hidden).length;
    const matching = events.filter((entry) => !entry.row.hidden).length;
    byId("log-count").textContent = events.length ? (this.#needle ? `${matching} of ${events.length}` : String(events.length)) : "";
    byId("empty").hidden = events.length > 0 || Boolean(this.#needle) || this.list.querySelector(".gap") !== null;
    byId("no-match").hidden = !this.#needle || shown > 0;
    if (this.#paused) this.#showPaused();
    else byId("pause").textContent = "Pause";
    if (this.#following) this.list.scrollTop = this.list.scrollHeight;
    this.cursor.update();
    this.#showJumps();
  }

  #showJumps() {
    showText(byId("jump"), this.#following || !this.#below ? "" : `↓ ${this.#below} new`);
    showText(byId("jump-gap"), this.gaps.words);
  }
}
