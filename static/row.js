/** The rows of the event log: of an event, of a gap, of a notice of the hub. */
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
    "div",
    { class: "row event", role: "row", tabindex: -1, "data-replayed": entry.replayed },
    element("time", { class: "cell time", role: "gridcell" }),
    element("span", { class: "cell type", role: "gridcell", "data-hue": hueOf(entry.type), title: entry.type }, element("span", {}, entry.type)),
    element("span", { class: "cell topic", role: "gridcell" }),
    element("div", { class: "cell data", role: "gridcell" }, dataView(entry.data)),
    element("span", { class: "cell id", role: "gridcell" }, idView(entry.id)),
  );
  const details = row.querySelector("details");
  if (details) row.setAttribute("aria-expanded", "false");
  details?.addEventListener("toggle", () => row.setAttribute("aria-expanded", String(details.open)));
  if (entry.replayed) row.lastChild.prepend(element("span", { class: "mark replayed", title: "From the hub's log, not live" }, "replayed"));
  fillIn(row, entry);
  return row;
}

/** Writes the facts that come after the event: its topics, its time of publication, and whether this tab sent it. */
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

/** The row of a notice of the hub. */
export function systemRow(label, text) {
  return wordsRow("system", element("p", {}, element("strong", {}, label), " ", text));
}

function wordsRow(kind, ...words) {
  const now = new Date();
  return element(
    "div",
    { class: `row ${kind}`, role: "row", tabindex: -1 },
    element("time", { class: "cell time", role: "gridcell", datetime: now.toISOString() }, clock(now)),
    element("div", { class: "words", role: "gridcell", "aria-colspan": 4 }, ...words),
  );
}

/** The row that says that publications are missing up to the position `start`, and why. */
export function gapRow(gap, start) {
  return wordsRow(
    "gap",
    element("p", {}, element("strong", {}, `Gap: ${missing(gap.requested, start)}`), " ", element("code", { class: "mark" }, gap.reason)),
    element("p", {}, REASONS[gap.reason] ?? "The log no longer holds what followed."),
    element("p", { class: "range" }, "This tab had got to ", element("code", {}, gap.requested ?? "no known position"), ...held(gap)),
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

/** The id; where there is little room only its offset is shown. */
function idView(id) {
  const epoch = id.slice(0, id.lastIndexOf("-") + 1);
  return element("code", { title: id }, element("span", { class: "epoch" }, epoch), id.slice(epoch.length));
}

/** Not a tab stop of its own: its row is one. */
function folded(preview, full, kind) {
  const details = element("details", { class: kind }, element("summary", { tabindex: -1 }, element("code", {}, preview)));
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
