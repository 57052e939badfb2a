/** The gaps that nobody has looked at yet: a badge leads to them, also when they came while the reader was elsewhere. */

const LOOKED_AT = 1000; // ms in view

export class UnseenGaps {
  #inView = new Map(); // row -> timer, or 0 while it is out of view
  #observer;

  /** `changed()` is called when there are more or fewer out of view. */
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

  /** Those that are out of view, the oldest first. */
  get elsewhere() {
    return [...this.#inView].filter(([, timer]) => !timer).map(([row]) => row);
  }

  /** What the badge says; nothing when none is to be said. */
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
      this.#inView.set(target, isIntersecting ? setTimeout(() => this.#onSeen(target), LOOKED_AT) : 0);
    }
    this.changed();
  }

  #onSeen(row) {
    if (!document.hidden) return this.delete(row);
    document.addEventListener("visibilitychange", () => this.#inView.has(row) && this.#inView.set(row, setTimeout(() => this.#onSeen(row), LOOKED_AT)), { once: true });
  }
}
