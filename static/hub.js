/** Requests to the hub beside the stream. */
import { session } from "./session.js";
import { addressOf } from "./sse-app.js";

const TIMEOUT = 5000; // ms

/** An answer that is a refusal, or none: `status` is then 0. `code` is that of the hub's problem, if it is one. */
export class HubError extends Error {
  constructor(status, detail, code) {
    super(detail);
    this.status = status;
    this.code = code;
  }

  /** True when the hub asks who this is, and not a proxy in front of it. */
  get asksWho() {
    return asksWho(this.code);
  }
}

/** Returns true for the code of a problem that a token or key may be the answer to. */
export function asksWho(code) {
  return code === "unauthorized" || code === "invalid_token";
}

/** The JSON that the hub answers to a request, made as who is signed in unless it has a header for that. Raises HubError. */
export async function call(url, { timeout = TIMEOUT, headers = {}, ...request } = {}) {
  const sent = { ...request, headers: { ...session.headers, ...headers }, signal: AbortSignal.timeout(timeout) };
  let answer;
  try {
    answer = await fetch(addressOf(url), sent);
    if (answer.ok) return await answer.json();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new HubError(0, late ? `The hub has not answered within ${timeout / 1000} s.` : "The hub cannot be reached.");
  }
  const problem = await answer.json().catch(() => ({}));
  throw new HubError(answer.status, problem.detail ?? problem.title ?? `The hub answered with status ${answer.status}.`, problem.code);
}
