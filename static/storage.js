/** What the console remembers. Browsers may refuse storage (private mode, policy): then it remembers nothing. */

export function recall(storage, key) {
  try {
    return JSON.parse(window[storage].getItem(`sse-app.${key}`));
  } catch {
    return null;
  }
}

export function remember(storage, key, value) {
  try {
    window[storage].setItem(`sse-app.${key}`, JSON.stringify(value));
  } catch {
    // Not remembering is the answer.
  }
}
