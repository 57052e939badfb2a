/** The gaps that have not been in view yet. A badge leads to them from wherever the reader is in the log. */

const SEEN_AFTER = 1000; // ms in view

export class UnseenGaps {
  #inView = new Map(); // row -> timer, or 0 while it is out of view
  #observer;

  /** `changed()` is called when the number of gaps out of view changes. */
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.#observer = new IntersectionObserver((entries) => this.#onView(entries), { root: list, threshold: 0.5 });
  }

  add(row) {
    this.#inView.set(row, 0);
    this.#observer.observe(row);
  }

  delete(row) {
    if (!this.#inView.has(row)) return;
    clearTimeout(this.#inView.get(row));
    this.#inView.delete(row);
    this.#observer.unobserve(row);
  }

  /** The gaps out of view, the oldest first. */
  get elsewhere() {
    return [...this.#inView].filter(([, timer]) => !timer).map(([row]) => row);
  }

  /** The text of the badge; empty when all gaps were in view. */
  get words() {
    const rows = this.elsewhere;
    if (!rows.length) return "";
    const arrow = rows[0].offsetTop < this.list.scrollTop ? "↑" : "↓";
    return `${arrow} ${rows.length === 1 ? "Gap" : `${rows.length} gaps`} not seen yet`;
  }

  #onView(entries) {
    for (const { target, isIntersecting } of entries) {
      if (!this.#inView.has(target)) continue;
      clearTimeout(this.#inView.get(target));
      this.#inView.set(target, isIntersecting ? setTimeout(() => this.#onSeen(target), SEEN_AFTER) : 0);
    }
    this.changed();
  }

  #onSeen(row) {
    if (!document.hidden) return this.delete(row);
    document.addEventListener("visibilitychange", () => this.#inView.has(row) && this.#inView.set(row, setTimeout(() => this.#onSeen(row), SEEN_AFTER)), { once: true });
  }
}
