/** The publishing request: sent from here, or shown as the curl command that sends the same. */
import { isJson } from "./json.js";
import { addressOf } from "./sse-app.js";
import { recall, remember } from "./storage.js";

const TIMEOUT = 15_000; // ms

/** A publication that the hub has refused or not answered. `status` is 0 without an answer. */
export class PublishError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const publishKey = {
  get: () => recall("sessionStorage", "key") ?? "",
  set: (key) => remember("sessionStorage", "key", key),
};

/** What to send for { topic, type, body, to, exclude }: the URL, the content type and the body as it is. */
export function requestFor({ topic, type, body, to, exclude }) {
  const url = addressOf("broadcast");
  if (topic) url.searchParams.set("topic", topic);
  if (type && type !== "message") url.searchParams.set("event", type);
  if (to) url.searchParams.set("to", to);
  if (exclude) url.searchParams.set("exclude", exclude);
  url.search = url.search.replaceAll("%2F", "/"); // as valid in a query, and easier to read
  return { url: url.href, contentType: isJson(body) ? "application/json" : "text/plain", body };
}

/** The hub's answer { id, subscribers, durable }. Raises PublishError. */
export async function publish(request, idempotencyKey) {
  const headers = { "Content-Type": request.contentType };
  if (idempotencyKey) headers["Idempotency-Key"] = idempotencyKey;
  if (publishKey.get()) headers.Authorization = `Bearer ${publishKey.get()}`;
  let answer;
  try {
    answer = await fetch(request.url, { method: "POST", headers, body: request.body, signal: AbortSignal.timeout(TIMEOUT) });
    if (answer.ok) return await answer.json();
  } catch (error) {
    const why = error.name === "TimeoutError" ? `The hub has not answered within ${TIMEOUT / 1000} s.` : "The hub cannot be reached.";
    throw new PublishError(0, `${why} Send again: it will not be published twice.`);
  }
  const problem = await answer.json().catch(() => ({}));
  throw new PublishError(answer.status, problem.detail ?? problem.title ?? `The hub answered with status ${answer.status}.`);
}

/** The request as a command for a POSIX shell. The publish key is never shown. */
export function curlFor(request, withKey) {
  const parts = ["curl"];
  // --data-raw, since -d would read a file for a body that begins with @.
  parts.push(`--data-raw ${quote(request.body)}`, `-H ${quote(`Content-Type: ${request.contentType}`)}`);
  if (withKey) parts.push('-H "Authorization: Bearer $SSE_APP_PUBLISH_KEY"');
  parts.push(quote(request.url));
  return `${parts[0]} ${parts.slice(1).join(" \\\n  ")}`;
}

/** The text as one word of a POSIX shell. */
export function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
