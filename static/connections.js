/**
 * Who is connected, for administrators, who may also end connections. The list is fetched when it is asked for: one that
 * moved by itself would put another client under the pointer.
 */
import { byId, element, showText } from "./element.js";
import { call } from "./hub.js";
import { session } from "./session.js";
import { ago, duration } from "./times.js";

export class Connections {
  /** `own()` is this tab's name; `refused(error)` is called with a HubError. */
  constructor({ own, refused }) {
    this.own = own;
    this.refused = refused;
    byId("show-connections").addEventListener("click", () => this.#open());
    byId("find-connections").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#list();
    });
  }

  /** Shows the list to an administrator; offers it where nobody is told apart, and the hub itself knows who may see it. */
  show({ admin, open }) {
    byId("show-connections").hidden = !open;
    if (admin && byId("connections").hidden) this.#open();
    if (!admin) this.#close();
  }

  #open() {
    byId("connections").hidden = false;
    byId("show-connections").hidden = true;
    this.#list();
  }

  #close() {
    byId("connections").hidden = true;
    this.#clear();
    byId("connection-name").value = "";
    byId("kicked").textContent = "";
    showText(byId("connections-error"), "");
  }

  #clear() {
    byId("connection-list").replaceChildren();
    byId("connection-count").textContent = byId("connection-note").textContent = "";
  }

  async #list() {
    showText(byId("connections-error"), "");
    const answer = await this.#call(withQuery("connections", wanted(byId("connection-name").value.trim())));
    if (!answer) return this.#clear();
    const { connections, more, partial = [] } = answer;
    const list = byId("connection-list");
    const focused = list.contains(document.activeElement);
    list.replaceChildren(...connections.map((connection) => this.#row(connection)));
    if (focused) byId("refresh-connections").focus(); // the button that had it is gone
    byId("connection-count").textContent = more ? `newest ${connections.length}` : String(connections.length);
    byId("connection-note").textContent = [connections.length ? "" : "Nobody.", silent(partial, "so the list is incomplete")].filter(Boolean).join(" ");
  }

  #row(connection) {
    const { client, user } = connection;
    const own = client === this.own() ? element("span", { class: "mark own" }, "this tab") : null;
    const kick = (label, name, path, query = {}) => {
      const button = element("button", { class: "button quiet", type: "button", "aria-label": `${label} ${name}` }, label);
      button.addEventListener("click", () => this.#kick(name, path, query));
      return button;
    };
    return element(
      "li",
      {},
      element("p", { class: "who" }, element("code", {}, client), own),
      element("p", { class: "note" }, described(connection)),
      element(
        "div",
        { class: "kicks" },
        kick("Kick", client, `connections/${encodeURIComponent(client)}`),
        user === null ? null : kick("Kick user", user, "connections", { user }),
      ),
    );
  }

  /** Ends connections, and keeps their clients out for as long as is chosen. */
  async #kick(name, path, query) {
    const block = Number(byId("block").value);
    showText(byId("connections-error"), "");
    byId("kicked").textContent = "";
    const answer = await this.#call(withQuery(path, { ...query, ...(block && { block }) }), { method: "DELETE" });
    if (!answer) return;
    const { closed, partial = [] } = answer;
    const ended = `${closed === 1 ? "1 connection" : `${closed.toLocaleString()} connections`} of ${name} ended`;
    const kept = block ? `, kept out for ${duration(block)}` : "";
    byId("kicked").textContent = [`${ended}${kept}.`, silent(partial, "and will read of it within some seconds")].filter(Boolean).join(" ");
    this.#list();
  }

  /** The hub's answer, null when it was refused, or was for somebody else. */
  async #call(path, request) {
    const { turn } = session;
    try {
      const answer = await call(path, request);
      return turn === session.turn ? answer : null;
    } catch (error) {
      if (turn !== session.turn) return null;
      showText(byId("connections-error"), error.message);
      this.refused(error);
      return null;
    }
  }
}

/** The query for a name as in `to` of a publication: `client`, `@user` or `client@user`; all for none. */
function wanted(name) {
  const at = name.indexOf("@");
  const [client, user] = at < 0 ? [name, ""] : [name.slice(0, at), name.slice(at + 1)];
  return { ...(client && { client }), ...(user && { user }) };
}

function withQuery(path, query) {
  return Object.keys(query).length ? `${path}?${new URLSearchParams(query)}` : path;
}

function described({ user, topics, topics_cut: cut, since, address, source, node, expires, behind, queued_bytes: queued }) {
  return [
    user === null ? null : `@${user}`,
    [...topics, ...(cut ? ["…"] : [])].join(", ") || "everything",
    `connected ${ago(new Date(since * 1000))}`,
    address && `from ${address}`,
    source && source !== "open" ? `by ${source}` : null,
    expires && `expires in ${duration(Math.max(0, expires - Date.now() / 1000))}`,
    behind ? "catching up" : null,
    queued ? `${queued.toLocaleString()} bytes queued` : null,
    `on node ${node}`,
  ].filter(Boolean).join(" · ");
}

/** What is to be said of nodes that did not answer in time; "" when all did. */
function silent(nodes, so) {
  if (!nodes.length) return "";
  return `${nodes.length === 1 ? "1 node" : `${nodes.length} nodes`} did not answer in time, ${so}.`;
}
