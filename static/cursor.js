/** One tab stop for all rows of the log: arrow keys, Home, End, Page Up and Page Down move it, Enter and Space open a row. */

export class Cursor {
  #row = null; // the tab stop

  /** `moved(row, isLast)` is called after a key has moved it. */
  constructor(list, moved) {
    this.list = list;
    this.moved = moved;
    list.addEventListener("keydown", (event) => this.#onKey(event));
    list.addEventListener("focusin", ({ target }) => (target === list ? this.#row?.focus() : this.#stopAt(target.closest(".row"))));
  }

  /** Called after rows were added or removed: makes the last row the tab stop, unless a row has the focus. */
  update() {
    if (this.#isFocused() && this.#row.isConnected) return;
    this.#stopAt(next(this.list.lastElementChild, "previousElementSibling"));
  }

  /** Called before a row is removed: moves the focus to a neighbour. */
  beforeRemove(row) {
    if (!row.contains(document.activeElement)) return;
    const neighbour = next(row.nextElementSibling, "nextElementSibling") ?? next(row.previousElementSibling, "previousElementSibling");
    neighbour?.focus({ preventScroll: true });
  }

  /** Puts the focus on a row, the last one without it. */
  focus(row) {
    this.#stopAt(row ?? next(this.list.lastElementChild, "previousElementSibling"));
    this.#row?.focus({ preventScroll: true });
  }

  #isFocused() {
    return Boolean(this.#row?.contains(document.activeElement));
  }

  #stopAt(row) {
    if (this.#row) this.#row.tabIndex = -1;
    this.#row = row;
    if (row) row.tabIndex = 0;
  }

  #onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !this.#row) return;
    const details = this.#row.querySelector("details");
    if (event.key === "Enter" || event.key === " ") {
      if (event.target !== this.#row || !details) return; // a summary does that by itself
      details.open = !details.open;
    } else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      if (!details) return;
      details.open = event.key === "ArrowRight";
    } else {
      const row = this.#target(event.key);
      if (!row) return;
      this.focus(row);
      row.scrollIntoView({ block: "nearest" });
      this.moved(row, !next(row.nextElementSibling, "nextElementSibling"));
    }
    event.preventDefault();
  }

  #target(key) {
    const page = { PageUp: -this.list.clientHeight, PageDown: this.list.clientHeight }[key];
    if (page) return this.#across(page);
    if (key === "ArrowDown") return next(this.#row.nextElementSibling, "nextElementSibling");
    if (key === "ArrowUp") return next(this.#row.previousElementSibling, "previousElementSibling");
    if (key === "Home") return next(this.list.firstElementChild, "nextElementSibling");
    return key === "End" ? next(this.list.lastElementChild, "previousElementSibling") : null;
  }

  /** Returns the row that is `pixels` further, or the last one in that direction. */
  #across(pixels) {
    const direction = pixels < 0 ? "previousElementSibling" : "nextElementSibling";
    let row = this.#row;
    for (let other = row; other && Math.abs(other.offsetTop - this.#row.offsetTop) <= Math.abs(pixels); ) {
      row = other;
      other = next(other[direction], direction);
    }
    return row;
  }
}

/** Returns the row, or the next one in that direction, that is not filtered out. */
function next(row, direction) {
  while (row?.hidden) row = row[direction];
  return row;
}
