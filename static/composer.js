/** The broadcast form. */
import { listed } from "./access.js";
import { PING } from "./connection.js";
import { byId, element, showText } from "./element.js";
import { isJson } from "./json.js";
import { HubError } from "./hub.js";
import { curlFor, publish, publishKey, requestFor } from "./publish.js";
import { session } from "./session.js";

const PINGS = 20;
const DURABLE = { none: "kept in memory", log: "kept in the log", fsync: "kept on disk" };

export class Composer {
  #unanswered = null; // { request, key } of a try without an answer: the same again must not publish twice

  /**
   * `client()` is this tab's name and `address()` that for `to`; `sent(answer, facts)` is called after a publication.
   * `access` knows who this tab is.
   */
  constructor({ client, address, sent, access }) {
    this.client = client;
    this.address = address;
    this.sent = sent;
    this.access = access;
    this.form = byId("broadcast");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.form.addEventListener("input", () => this.refresh());
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    byId("key").addEventListener("input", (event) => publishKey.set(event.target.value.trim()));
    byId("measure").addEventListener("click", () => this.#measure());
    if (/Mac|iP(hone|ad)/.test(navigator.platform)) byId("send-keys").textContent = "⌘ ↵";
    if (publishKey.get()) this.#askForKey();
    this.refresh();
  }

  /** Shows how the body will be sent, and the request as a command. */
  refresh() {
    const { body } = this.#draft();
    const format = byId("format");
    const json = isJson(body);
    const broken = !json && /^\s*[{[]/.test(body) && body.trim().length > 1;
    format.dataset.format = json ? "json" : broken ? "broken" : "text";
    format.textContent = json ? "JSON" : broken ? "Text: not valid JSON" : "Text";
    const request = requestFor(this.#draft({ body: body || "hello" }));
    if (session.signedIn) byId("key-field").hidden = true; // who is signed in publishes as that
    const variable = session.signedIn ? "SSE_APP_TOKEN" : byId("key-field").hidden ? "" : "SSE_APP_PUBLISH_KEY";
    byId("curl").textContent = curlFor(request, variable);
    byId("empty-curl").textContent = curlFor(requestFor({ body: "hello" }), variable);
  }

  /** Forgets what somebody else was told; what is being written stays. */
  reset() {
    showText(byId("broadcast-error"), "");
    byId("receipt").textContent = "";
    this.suggest([], []);
  }

  /** Offers these topics and types while typing. */
  suggest(topics, types) {
    byId("known-topics").replaceChildren(...topics.map((value) => element("option", { value })));
    byId("known-types").replaceChildren(...types.map((value) => element("option", { value })));
  }

  #draft(changes = {}) {
    const { topic, type, body, target } = Object.fromEntries(new FormData(this.form));
    const exclude = target === "others" ? this.client() : null;
    // A form's data has CRLF line ends, the text area LF.
    return { topic: topic.trim(), type: type.trim(), body: byId("body").value, exclude, ...changes };
  }

  #submit() {
    if (byId("send").disabled) return;
    showText(byId("broadcast-error"), "");
    byId("receipt").textContent = "";
    this.#while(byId("send"), async (isCurrent) => {
      const { subscribers, durable } = await this.#publish(this.#draft());
      const reached = subscribers === 1 ? "1 subscriber" : `${subscribers.toLocaleString()} subscribers`;
      if (isCurrent()) byId("receipt").textContent = `Sent to ${reached}, ${DURABLE[durable] ?? durable}`;
    });
  }

  /** Disables the button while `work` lasts, and shows why that failed: not to who has signed in or out meanwhile. */
  async #while(button, work) {
    const { turn } = session;
    const isCurrent = () => turn === session.turn;
    button.disabled = true;
    try {
      await work(isCurrent);
    } catch (error) {
      if (isCurrent()) this.#refused(error);
    } finally {
      button.disabled = false;
    }
  }

  async #publish(draft) {
    const request = requestFor(draft);
    const same = JSON.stringify(this.#unanswered?.request) === JSON.stringify(request);
    const key = same ? this.#unanswered.key : randomKey();
    this.#unanswered = { request, key };
    const start = performance.now();
    try {
      const answer = await publish(request, key);
      this.#unanswered = null;
      this.sent(answer, { start, topics: draft.topic ? [draft.topic] : [] });
      return answer;
    } catch (error) {
      if (error.status) this.#unanswered = null;
      throw error;
    }
  }

  /** Publishes pings that only this tab receives, one after the other. */
  #measure() {
    this.#while(byId("measure"), async (isCurrent) => {
      for (let i = 1; i <= PINGS && isCurrent(); i += 1) await this.#ping(i);
    });
  }

  async #ping(number) {
    const { subscribers } = await this.#publish({ type: PING, body: `ping ${number}`, to: this.address() });
    if (!subscribers) throw new HubError(0, "A ping reaches only a tab whose name the hub vouches for, and it does not for this one.");
  }

  #refused(error) {
    const granted = error.code === "insufficient_scope" && this.access.grant?.publish;
    showText(byId("broadcast-error"), granted ? `${error.message} You may publish on ${listed(granted)}.` : error.message);
    if (error.asksWho && this.access.offered) return this.access.ask({ focus: true });
    if (error.status !== 401) return;
    this.#askForKey();
    byId("key").focus();
  }

  #askForKey() {
    byId("key-field").hidden = false;
    byId("key").value = publishKey.get();
    this.refresh();
  }
}

function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
