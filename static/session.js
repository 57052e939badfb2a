/** The token or key that this tab is signed in with. It is kept until the tab is closed, and goes out in a header alone. */
import { forget, recall, remember } from "./storage.js";

const NAME = "credential"; // in the session storage

class Session {
  #secret = recall("sessionStorage", NAME) ?? ""; // also here, for a browser that refuses storage
  /** Counts the changes of who is signed in, by which an answer to somebody before is told. */
  turn = 0;

  get signedIn() {
    return this.#secret !== "";
  }

  /** What the stream asks for before each connection; undefined for one that needs no token. */
  get token() {
    return this.signedIn ? () => this.#secret : undefined;
  }

  /** The header fields that a request has beside its own. */
  get headers() {
    return authorization(this.#secret);
  }

  signIn(secret) {
    this.#secret = secret;
    this.turn += 1;
    remember("sessionStorage", NAME, secret);
  }

  signOut() {
    this.#secret = "";
    this.turn += 1;
    forget("sessionStorage", NAME);
  }
}

export const session = new Session();

/** The header fields that carry a secret; none without one. */
export function authorization(secret) {
  return secret ? { Authorization: `Bearer ${secret}` } : {};
}
