/** The live console: what connects the stream, the statistics and the form to the page. */
import { Access } from "./access.js";
import { claimClientName } from "./client.js";
import { Composer } from "./composer.js";
import { Connection, PING } from "./connection.js";
import { Connections } from "./connections.js";
import { enableCopyButtons } from "./copy.js";
import { byId, showText } from "./element.js";
import { Latency } from "./latency.js";
import { Log } from "./log.js";
import { whyEnded } from "./reasons.js";
import { gapRow, systemRow } from "./row.js";
import { session } from "./session.js";
import { addressOf } from "./sse-app.js";
import { Overview, Poll } from "./stats.js";
import { Status } from "./status.js";

// The page takes two of the stream's own parameters: topic, kept for a reload, and last_event_id, used once.
const page = addressOf(location.href);
const status = new Status();
const log = new Log();
const latency = new Latency();
const overview = new Overview();
const poll = new Poll(showStats, showNoStats);
const access = new Access({ changed: openAs, known: showConnections });
const connections = new Connections({ own: () => connection.client, refused: (error) => error.asksWho && access.ask() });
const connection = new Connection({
  client: claimClientName(rename),
  topics: page.searchParams.getAll("topic"),
  cursor: page.searchParams.get("last_event_id"),
  on: { state: showState, welcome: showWelcome, gap: (gap, start) => log.addRow(gapRow(gap, start), { gap: true }), bye: showBye, event: showEvent },
});
const composer = new Composer({
  client: () => connection.client,
  address: () => connection.address,
  access,
  sent: ({ id }, { start, topics }) => {
    log.update(id, { topics, own: true });
    latency.sent(id, start);
    poll.soon();
  },
});

function showState(state) {
  status.show(state);
  poll.active = state.name === "live";
  const topics = ["invalid_topic", "too_many_topics", "insufficient_scope"].includes(state.code);
  showText(byId("topics-error"), topics ? state.detail : "");
  if (state.name === "asked") access.ask();
  if (state.name === "live") access.dismiss();
  if (state.code === "insufficient_scope") access.refresh();
}

function showWelcome(welcome) {
  const { client, user, subscribers } = welcome;
  const words = [user ? `${client} of ${user}` : client];
  if (subscribers !== null) words.push(subscribers === 1 ? "1 client" : `${subscribers.toLocaleString()} clients`);
  words.push(`listening to ${welcome.topics.join(", ") || "everything"}`);
  if (welcome.recovered) words.push("caught up, nothing missed");
  log.addRow(systemRow(welcome.message, words.join(" · ")));
  overview.message(welcome.last);
  if (subscribers === null) showNoStats({ status: 403 });
  else overview.clients(subscribers);
  if (session.signedIn || isOfSomebody(welcome)) access.refresh();
}

/** Returns true for the welcome of a hub that does not grant everyone everything. */
function isOfSomebody({ user, expires_in: seconds, subscribers }) {
  return user !== undefined || seconds !== undefined || subscribers === null;
}

function showBye({ reason }) {
  log.addRow(systemRow("Bye!", whyEnded(reason).detail));
}

function showEvent(event) {
  latency.received(event.id);
  if (event.type === PING) return;
  if (!log.add(event)) return;
  overview.message({ id: event.id, event: event.type, data: event.data, time: event.replayed ? undefined : new Date() });
  if (!log.hasTopics(event.id)) poll.soon();
}

/** Stops asking for statistics that the hub does not tell; of other failures the connection's state tells. */
function showNoStats(error) {
  if (error.status === 403) overview.refused();
  if (error.asksWho) access.ask();
  if (error.status === 403 || error.asksWho) poll.active = false;
}

function showConnections() {
  connections.show({ admin: Boolean(access.grant?.admin), open: !access.offered });
}

/** Opens the stream as who has signed in, or as nobody; what somebody else was shown is gone. */
function openAs(same) {
  composer.refresh();
  if (same) return connection.open();
  log.reset();
  overview.reset();
  composer.reset();
  connection.openAfresh();
}

function showStats(stats) {
  overview.show(stats);
  for (const { id, topics, time } of stats.recent) log.update(id, { topics, time: new Date(time) });
  const topics = stats.recent.flatMap((publication) => publication.topics);
  const asked = (stats.filters ?? []).flatMap((filter) => filter.topics).filter((topic) => !topic.includes("*"));
  const types = stats.recent.map((publication) => publication.event);
  composer.suggest([...new Set([...topics, ...asked])], [...new Set(["message", ...types])]);
}

/** A duplicated tab has taken a name of its own. */
function rename(name) {
  connection.client = name;
  composer.refresh();
  if (connection.state.name !== "closed") connection.open();
}

function remember(topics) {
  const url = addressOf(location.href);
  url.searchParams.delete("last_event_id");
  url.searchParams.delete("topic");
  for (const topic of topics) url.searchParams.append("topic", topic);
  history.replaceState(null, "", url.pathname + url.search); // with whatever user and password the page's URL has
}

byId("connect").addEventListener("click", () => {
  if (["connecting", "live"].includes(connection.state.name)) connection.close();
  else if (connection.state.reason === "user_changed") openAs(false);
  else connection.reconnect();
});
byId("subscription").addEventListener("submit", (event) => {
  event.preventDefault();
  const topics = [...new Set(byId("topics").value.split(/[\s,]+/).filter(Boolean))];
  remember(topics);
  connection.subscribe(topics);
});

enableCopyButtons((text) => status.announce(text));
byId("topics").value = connection.topics.join(" ");
remember(connection.topics);
status.show(connection.state);
if (session.signedIn) access.offer();
connection.open();
byId("not-started").remove();
