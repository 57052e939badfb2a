/** Positions in the log, by the same rules as the server. */

/** `<epoch>-<offset>` as its two parts, null when the text is no position. */
export function parsePosition(id) {
  const match = /^([0-9a-z]+)-(\d+)$/.exec(id ?? "");
  return match && { epoch: match[1], offset: Number(match[2]) };
}

/** Returns true when `id` lies after `other` in the log, as a position of another epoch always does. */
export function isAfter(id, other) {
  const a = parsePosition(id);
  const b = parsePosition(other);
  return !a || !b || a.epoch !== b.epoch || a.offset > b.offset;
}
