/** The state of the connection in words, with a countdown; spoken only when it changes. */
import { byId, showText } from "./element.js";
import { duration } from "./times.js";

const SETTLE = 400; // ms; a reconnect that takes less is not announced
const SLOW = 6000; // ms
const SLOW_HINT = "Still connecting. Over HTTP/1.1 a browser keeps at most six connections to one site: with many tabs open, close one.";

export class Status {
  #state = { name: "connecting" };
  #ticking = 0;
  #settling = 0;
  #slow = 0;
  #announced = "";

  show(state) {
    this.#state = state;
    byId("state").dataset.state = document.body.dataset.state = state.name;
    byId("connect").textContent = ACTIONS[state.name];
    document.title = state.name === "live" ? "sse-app console" : `${nameOf(state)} · sse-app console`;
    showText(byId("notice"), state.detail);
    clearTimeout(this.#slow);
    if (state.name === "connecting") this.#slow = setTimeout(() => showText(byId("notice"), SLOW_HINT), SLOW);
    clearInterval(this.#ticking);
    if (state.until) this.#ticking = setInterval(() => this.#tick(), 250);
    this.#tick();
    clearTimeout(this.#settling);
    this.#settling = setTimeout(() => this.#announceState(), SETTLE);
  }

  /** Has a screen reader say the text. */
  announce(text) {
    byId("announcement").textContent = text;
  }

  #announceState() {
    const name = nameOf(this.#state);
    const text = this.#state.detail ? `${name}. ${this.#state.detail}` : name;
    if (text !== this.#announced) this.announce((this.#announced = text));
  }

  #tick() {
    const { name, until } = this.#state;
    const seconds = until ? Math.ceil((until - Date.now()) / 1000) : 0;
    byId("state-text").textContent = (WORDS[name] ?? labelled(nameOf(this.#state)))(seconds);
  }
}

const NAMES = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", draining: "Server draining", refused: "Refused", closed: "Closed" };
const ACTIONS = { connecting: "Disconnect", live: "Disconnect", reconnecting: "Reconnect now", draining: "Reconnect now", refused: "Try again", ended: "Reconnect now", asked: "Try again", closed: "Connect again" };
const WORDS = {
  connecting: () => "Connecting…",
  live: () => "Live",
  reconnecting: (seconds) => (seconds > 0 ? `Reconnecting in ${seconds} s` : "Reconnecting…"),
  draining: (seconds) => (seconds > 0 ? `Server draining, back in ${seconds} s` : "Server draining"),
  closed: () => "Closed",
};

/** The words for a state that says by itself what it is called. */
function labelled(label) {
  return (seconds) => (seconds > 0 ? `${label}, next try in ${duration(seconds)}` : label);
}

function nameOf({ name, label }) {
  return label ?? NAMES[name];
}
