/** The storage of the console. A browser may refuse storage (private mode, policy): then nothing is kept. */

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
    // The value is not kept: the browser refuses storage.
  }
}

export function forget(storage, key) {
  try {
    window[storage].removeItem(`sse-app.${key}`);
  } catch {
    // Nothing was kept: the browser refuses storage.
  }
}
