/** The publishing request: sent from here, or shown as the curl command that sends the same. */
import { HubError, call } from "./hub.js";
import { isJson } from "./json.js";
import { authorization, session } from "./session.js";
import { addressOf } from "./sse-app.js";
import { recall, remember } from "./storage.js";

const TIMEOUT = 15_000; // ms

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

/** The hub's answer { id, subscribers, durable }. Raises HubError. */
export async function publish({ url, contentType, body }, idempotencyKey) {
  const known = session.signedIn ? session.headers : authorization(publishKey.get());
  const headers = { "Content-Type": contentType, "Idempotency-Key": idempotencyKey, ...known };
  try {
    return await call(url, { method: "POST", headers, body, timeout: TIMEOUT });
  } catch (error) {
    if (error.status) throw error;
    throw new HubError(0, `${error.message} Send again: it will not be published twice.`);
  }
}

/** The request as a command for a POSIX shell, with the variable that has the secret, which is never shown. */
export function curlFor(request, variable) {
  const parts = ["curl"];
  // --data-raw, since -d would read a file for a body that begins with @.
  parts.push(`--data-raw ${quote(request.body)}`, `-H ${quote(`Content-Type: ${request.contentType}`)}`);
  if (variable) parts.push(`-H "Authorization: Bearer $${variable}"`);
  parts.push(quote(request.url));
  return `${parts[0]} ${parts.slice(1).join(" \\\n  ")}`;
}

/** The text as one word of a POSIX shell. */
export function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
