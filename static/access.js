/** Who this tab is for the hub: signing in and out, and what the hub then grants, in words. */
import { byId, element, showText } from "./element.js";
import { call } from "./hub.js";
import { whyAsked } from "./reasons.js";
import { authorization, session } from "./session.js";
import { duration } from "./times.js";

const SECRET = /^[\x21-\x7e]+$/; // what a header can carry as one word
const STATISTICS = { none: "not granted", own: "counts, and what you may listen to", all: "all" };

export class Access {
  #grant = null; // as GET /grant has answered last
  #back = null; // where the focus was before the form took it
  #ticking = 0;
  #cancelled = 0; // how often the form was left: an answer to what was tried before is dropped

  /**
   * `changed(same)` is called after signing in or out; `same`: as the user that it was before. `known()` is called when
   * what this tab may do is known, or that the hub tells callers apart.
   */
  constructor({ changed, known }) {
    this.changed = changed;
    this.known = known;
    byId("account").addEventListener("click", () => this.#onAccount());
    byId("sign-in").addEventListener("keydown", ({ key }) => key === "Escape" && this.#cancel());
    byId("sign-in").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#signIn(byId("secret").value.trim().replace(/^Bearer\s+/i, ""));
    });
  }

  /** What the hub grants; null while that is not known, as on a hub that is open to everyone. */
  get grant() {
    return this.#grant;
  }

  /** True once the hub has asked who this is, or has said that it does not tell everyone everything. */
  get offered() {
    return !byId("account").hidden;
  }

  /** Shows the button to sign in, or out. */
  offer() {
    byId("account").hidden = false;
    byId("account").textContent = session.signedIn ? "Sign out" : "Sign in";
    this.known();
  }

  /** Shows the form. Without `focus` it takes the focus only from nobody, since who types elsewhere would go on in it. */
  ask({ focus = false } = {}) {
    this.offer();
    const focused = document.activeElement;
    byId("sign-in").hidden = false;
    if (!focus && focused !== document.body) return;
    this.#back ??= focused;
    byId("secret").focus();
  }

  /** Takes the form away, unless somebody is at it: the stream is open without. */
  dismiss() {
    if (!byId("sign-in").contains(document.activeElement)) this.#close();
  }

  /** Asks the hub what it grants now, and shows it. */
  async refresh() {
    const { turn } = session;
    const grant = await call("grant").catch(() => null); // the stream's state says what is wrong
    if (grant && turn === session.turn) this.#show(grant);
  }

  /** Tries the secret before it takes the place of the one that is there. */
  async #signIn(secret) {
    if (!SECRET.test(secret)) return this.#refuse("Paste a token or a key: one word, without spaces.");
    const button = byId("sign-in-button");
    const cancelled = this.#cancelled;
    let grant;
    button.disabled = true;
    try {
      grant = await call("grant", { headers: authorization(secret) });
    } catch (error) {
      if (cancelled === this.#cancelled) this.#refuse(error.asksWho ? whyAsked({ signedIn: true }).detail : error.message);
      return;
    } finally {
      button.disabled = false;
    }
    if (cancelled === this.#cancelled) this.#accept(secret, grant);
  }

  #accept(secret, grant) {
    const same = Boolean(grant.user) && grant.user === this.#grant?.user;
    session.signIn(secret);
    this.#close();
    this.#show(same ? grant : null); // of another user once the stream is open
    this.changed(same);
  }

  #refuse(text) {
    showText(byId("sign-in-error"), text);
    byId("secret").select();
    byId("secret").focus();
  }

  #onAccount() {
    if (session.signedIn) this.#signOut();
    else if (byId("sign-in").hidden) this.ask({ focus: true });
    else this.#cancel();
  }

  #signOut() {
    session.signOut();
    this.#cancel();
    this.#show(null);
    this.changed(false);
  }

  /** Takes the form away because the user asked for it: a secret that is being tried is not taken then. */
  #cancel() {
    this.#cancelled += 1;
    this.#close();
  }

  #close() {
    const focused = byId("sign-in").contains(document.activeElement);
    byId("secret").value = "";
    byId("sign-in").hidden = true;
    showText(byId("sign-in-error"), "");
    if (focused) (this.#back?.isConnected && this.#back !== document.body ? this.#back : byId("connect")).focus();
    this.#back = null;
  }

  #show(grant) {
    this.#grant = grant;
    byId("access").hidden = !grant;
    byId("access-facts").replaceChildren(...(grant ? facts(grant) : []));
    clearInterval(this.#ticking);
    if (grant?.expires) this.#ticking = setInterval(() => this.#tick(), 1000);
    this.#tick();
    this.offer();
  }

  #tick() {
    if (!this.#grant?.expires) return;
    const words = expiry(this.#grant.expires);
    if (byId("expires").textContent !== words) byId("expires").textContent = words;
  }
}

/** The terms and descriptions of a grant. */
function facts(grant) {
  const listens = listed(grant.subscribe, "nothing");
  const rows = [
    ["Who you are", grant.user ?? (session.signedIn ? "the holder of this token or key" : "nobody by name")],
    ["Expires", grant.expires ? element("time", { id: "expires", datetime: new Date(grant.expires * 1000).toISOString() }) : "never"],
    ["Listen to", grant.subscribe && !grant.broadcasts ? `${listens}, but to nothing without a topic` : listens],
    grant.denied.length ? ["But not to", grant.denied.join(", ")] : null,
    ["Publish on", listed(grant.publish, "nothing")],
    grant.client ? ["Client name", grant.client] : null,
    ["Statistics", STATISTICS[grant.stats] ?? grant.stats],
    ["Also", also(grant)],
  ];
  return rows.filter(Boolean).map(([term, words]) => element("div", {}, element("dt", {}, term), element("dd", {}, words)));
}

function also({ mint, admin }) {
  const more = [mint && "make tickets for others", admin && "see and end connections"].filter(Boolean);
  return more.join(", ") || "nothing more";
}

/** Topic filters in words. */
export function listed(patterns, none) {
  if (!patterns?.length) return none;
  return patterns.includes("**") ? "everything" : patterns.join(", ");
}

function expiry(expires) {
  const seconds = Math.ceil(expires - Date.now() / 1000);
  return seconds > 0 ? `in ${duration(seconds)}` : "now";
}
