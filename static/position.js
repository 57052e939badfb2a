/** Positions in the log and topic filters, by the same rules as the server. */

/** `<epoch>-<offset>` as its two parts, null when the text is no position. */
export function parsePosition(id) {
  const match = /^([0-9a-z]+)-(\d+)$/.exec(id ?? "");
  return match && { epoch: match[1], offset: Number(match[2]) };
}

/** Whether `id` lies after `other` in the log; a position of another epoch always does. */
export function isAfter(id, other) {
  const a = parsePosition(id);
  const b = parsePosition(other);
  return !a || !b || a.epoch !== b.epoch || a.offset > b.offset;
}

/** Whether a publication on `topics` reaches a subscriber with these filters; one without topics is for everyone. */
export function reaches(filters, topics) {
  if (!filters.length || !topics.length) return true;
  return filters.some((filter) => topics.some((topic) => matches(filter.split("/"), topic.split("/"))));
}

function matches(pattern, topic) {
  if (pattern.at(-1) === "**") {
    pattern = pattern.slice(0, -1);
    topic = topic.slice(0, pattern.length);
  }
  return pattern.length === topic.length && pattern.every((part, i) => part === "*" || part === topic[i]);
}
