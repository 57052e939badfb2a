/** One row of the event log: how an event, a gap or a word of the hub looks. */
import { element } from "./element.js";
import { compact, isJson, pretty } from "./json.js";
import { isAfter, parsePosition } from "./position.js";

const TEXT_LINES = 8; // longer text is folded
const TEXT_LENGTH = 600; // characters
const PREVIEW = 240; // characters
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const HUES = 6;

/** The row of an event entry: { id, type, data, replayed, received, topics?, time?, own? }. */
export function eventRow(entry) {
  const row = element(
    "li",
    { class: "row event", "data-replayed": entry.replayed },
    element("time", { class: "cell time" }),
    element("span", { class: "cell type", "data-hue": hueOf(entry.type), title: entry.type }, element("span", {}, entry.type)),
    element("span", { class: "cell topic" }),
    element("div", { class: "cell data" }, dataView(entry.data)),
    element("span", { class: "cell id" }, element("code", { title: entry.id }, entry.id)),
  );
  if (entry.replayed) row.lastChild.prepend(element("span", { class: "mark replayed", title: "From the hub's log, not live" }, "replayed"));
  fillIn(row, entry);
  return row;
}

/** Writes what became known later: the topics, the time of publication, and whether this tab has sent it. */
export function fillIn(row, entry) {
  const time = entry.time ?? (entry.replayed ? null : entry.received);
  const [timeCell, , topicCell, , idCell] = row.children;
  timeCell.textContent = time ? clock(time) : "–";
  timeCell.title = time ? `${entry.time ? "Published" : "Received"} ${time.toISOString()}` : "Published before this tab connected";
  if (time) timeCell.dateTime = time.toISOString();
  const topics = entry.topics?.join(", ");
  topicCell.textContent = entry.topics ? topics || "no topic" : "–";
  topicCell.title = topics || (entry.topics ? "Published without a topic: for every subscriber, whatever its filter" : "Not known: an event carries no topic");
  topicCell.classList.toggle("quiet", !topics);
  if (entry.own && !row.querySelector(".own")) idCell.prepend(element("span", { class: "mark own", title: "Sent by this tab" }, "you"));
}

/** A quiet row in the hub's own words. */
export function systemRow(label, text) {
  const now = new Date();
  const time = element("time", { class: "cell time", datetime: now.toISOString() }, clock(now));
  return element("li", { class: "row system" }, time, element("p", { class: "words" }, element("strong", {}, label), " ", text));
}

/** The row that says that publications are missing up to the position `start`, and why. */
export function gapRow(gap, start) {
  const now = new Date();
  return element(
    "li",
    { class: "row gap" },
    element("time", { class: "cell time", datetime: now.toISOString() }, clock(now)),
    element(
      "div",
      { class: "words" },
      element("p", {}, element("strong", {}, `Gap: ${missing(gap.requested, start)}`), " ", element("code", { class: "mark" }, gap.reason)),
      element("p", {}, REASONS[gap.reason] ?? "The log no longer holds what followed."),
      element("p", { class: "range" }, "This tab had got to ", element("code", {}, gap.requested ?? "no known position"), ...held(gap)),
    ),
  );
}

const REASONS = {
  trimmed: "They were published while this tab was away, and the log is full or their time was up.",
  epoch: "The log has started anew since this tab was last here. What it had not received of the old one is gone.",
  ahead: "This tab has seen more than the log holds: the log has lost its end.",
  malformed: "The position that this tab asked for is not one of this hub.",
  lost: "The hub could not read them from the log.",
};

function held({ oldest, top }) {
  if (isAfter(oldest, top)) return ["; the log is empty now."];
  return ["; the log holds ", element("code", {}, oldest), " to ", element("code", {}, top), "."];
}

function missing(requested, start) {
  const [from, to] = [parsePosition(requested), parsePosition(start)];
  const count = from && to && from.epoch === to.epoch ? to.offset - from.offset : 0;
  if (count <= 0) return "messages may be missing here";
  return count === 1 ? "1 message is missing here" : `${count.toLocaleString()} messages are missing here`;
}

function clock(date) {
  const today = date.toDateString() === new Date().toDateString();
  return today ? CLOCK.format(date) : `${DAY.format(date)} ${CLOCK.format(date)}`;
}

function dataView(data) {
  if (isJson(data)) return folded(compact(data, PREVIEW), () => pretty(data), "json");
  const lines = data.split("\n", TEXT_LINES + 1).length;
  if (data.length <= TEXT_LENGTH && lines <= TEXT_LINES) return element("pre", { class: "text" }, data);
  return folded(`${data.slice(0, PREVIEW)}…`, () => data, "text");
}

function folded(preview, full, kind) {
  const details = element("details", { class: kind }, element("summary", {}, element("code", {}, preview)));
  const open = () => details.append(element("pre", {}, full()));
  details.addEventListener("toggle", open, { once: true }); // most rows are never opened
  return details;
}

function hueOf(type) {
  if (type === "message") return null;
  let hash = 0;
  for (const char of type) hash = (hash * 31 + char.codePointAt(0)) >>> 0;
  return hash % HUES;
}
