/** The stable name of this tab, kept over reloads and reconnects. */
import { recall, remember } from "./storage.js";

function newName() {
  const name = `tab-${[...crypto.getRandomValues(new Uint8Array(4))].map((b) => b.toString(16).padStart(2, "0")).join("")}`;
  remember("sessionStorage", "client", name);
  return name;
}

/**
 * This tab's name. A duplicated tab starts with a copy of the session storage and so with the same name; the tab that
 * had it first says so over a BroadcastChannel, and `renamed` is called with a new one.
 */
export function claimClientName(renamed) {
  let name = recall("sessionStorage", "client");
  if (!/^[A-Za-z0-9._-]{1,64}$/.test(name ?? "")) name = newName();
  const channel = new BroadcastChannel("sse-app.client");
  channel.onmessage = ({ data }) => {
    if (data.name !== name) return;
    if (data.claim) return channel.postMessage({ name, taken: data.claim });
    if (data.taken === claim) renamed((name = newName()));
  };
  const claim = Math.random();
  channel.postMessage({ name, claim });
  return name;
}
