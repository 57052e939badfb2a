/** JSON shown as it was sent: re-indented token by token, so that no number is rounded and no key is dropped. */
import { element } from "./element.js";

const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
const COLOUR_LIMIT = 50_000; // characters; above it a span per token would stall the page

/** Returns true for a JSON object or array. A bare number or word is shown as text. */
export function isJson(text) {
  if (!/^\s*[{[]/.test(text)) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** The JSON text on one line, at most about `limit` characters of it. */
export function compact(text, limit) {
  let line = "";
  for (const [token] of text.matchAll(TOKEN)) {
    line += token === ":" || token === "," ? `${token} ` : token;
    if (line.length > limit) return `${line.slice(0, limit)}…`;
  }
  return line;
}

/** The JSON text indented, with keys and values in spans to colour. */
export function pretty(text) {
  const fragment = document.createDocumentFragment();
  const plain = text.length > COLOUR_LIMIT;
  for (const [token, before, kind] of layout(text)) {
    fragment.append(before, plain || !kind ? token : element("span", { class: `json-${kind}` }, token));
  }
  fragment.normalize();
  return fragment;
}

/** Yields [token, the white space before it, its kind]. */
function* layout(text) {
  const tokens = Array.from(text.matchAll(TOKEN), ([token]) => token);
  let depth = 0;
  let previous = "";
  for (const [i, token] of tokens.entries()) {
    const closes = token === "}" || token === "]";
    const opened = previous === "{" || previous === "[";
    if (closes) depth -= 1;
    let before = "";
    if (closes ? !opened : opened || previous === ",") before = `\n${"  ".repeat(depth)}`;
    else if (previous === ":") before = " ";
    if (token === "{" || token === "[") depth += 1;
    yield [token, before, kindOf(token, tokens[i + 1])];
    previous = token;
  }
}

function kindOf(token, next) {
  if (token[0] === '"') return next === ":" ? "key" : "string";
  return /^[{}[\],:]$/.test(token) ? null : "literal";
}
