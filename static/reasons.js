/** Why a stream has ended or was refused, in words: a label for the state, and a sentence. */

/** By the reason of a `bye`, as in docs/http-api.md. */
const ENDS = {
  drain: ["Server draining", "The server is shutting down or restarting; this tab reconnects by itself."],
  expired: ["Expired", "The permission to listen has expired."],
  revoked: ["Withdrawn", "The permission to listen was withdrawn."],
  kicked: ["Sent away", "An administrator has ended this connection; this tab reconnects as soon as it may."],
  changed: ["Access changed", "What you may listen to has changed; this tab reconnects by itself."],
  replaced: ["Replaced", "Another connection has taken the place of this one."],
  contested: ["Contested", "Others have used the same ticket."],
  limit: ["Too many", "The hub has too many connections from here; this tab reconnects by itself."],
};
const NOT_SIGNED_IN = ["Not signed in", "This hub asks for a token or a key."];
const NOT_ACCEPTED = ["Not accepted", "The hub does not accept this token or key: it is wrong, has expired or was withdrawn."];
const SIGN_IN = { expired: "Sign in with a new token or key.", revoked: "Sign in with another token or key." };

/** Returns { label, detail } of a `bye`. */
export function whyEnded(reason) {
  const [label, detail] = ENDS[reason] ?? ["Ended", `The hub has ended this connection: ${reason}.`];
  return { label, detail };
}

/** Returns { label, detail } of a 401 to a request with a secret or without; after a `bye` it has the reason of that. */
export function whyAsked({ reason, signedIn }) {
  const [label, detail] = SIGN_IN[reason] ? ENDS[reason] : signedIn ? NOT_ACCEPTED : NOT_SIGNED_IN;
  return { label, detail: SIGN_IN[reason] ? `${detail} ${SIGN_IN[reason]}` : detail };
}
