// A list of any length: only visible rows exist in the page, and only the pages of rows near them are requested.

import { el, setChildren, setVars } from "./dom.js";

const OVERSCAN = 6; // rows kept above and below the visible ones
const PAGE = 100; // rows of one request

export class VirtualList {
  #pages = new Map(); // page -> rows, or null while it is requested
  #total = 0;
  #active = -1;
  #picking = false; // the active row was chosen before it arrived
  #generation = 0; // counts resets, so that answers to older requests are dropped

  /**
   * `height` of a row in pixels; `fetch(offset, limit)` returns {total, rows}; `row(item)` returns a row's content;
   * `onpick(item)` when a row is chosen; `onload(total)` and `onfail(error)` after the first page.
   */
  constructor({ label, height, fetch, row, onpick, onload, onfail }) {
    Object.assign(this, { height, fetch, row, onpick, onload, onfail });
    this.inner = el("div", { class: "virtual-inner", role: "presentation" });
    this.node = el("div", { class: "virtual", role: "listbox", tabindex: "0", "aria-label": label }, this.inner);
    this.node.addEventListener("scroll", () => this.draw());
    this.node.addEventListener("click", (event) => {
      const chosen = event.target.closest("[data-at]");
      if (chosen) this.go(Number(chosen.dataset.at));
    });
    this.node.addEventListener("keydown", (event) => this.#pressed(event));
    new ResizeObserver(() => this.draw()).observe(this.node);
  }

  /** Drops all rows and requests the first ones. */
  async reset() {
    const generation = ++this.#generation;
    this.#pages.clear();
    this.#active = -1;
    this.#picking = false;
    this.node.scrollTop = 0;
    this.node.setAttribute("aria-busy", "true");
    try {
      const { total, rows } = await this.fetch(0, PAGE);
      if (generation !== this.#generation) return;
      this.#total = total;
      this.#pages.set(0, rows);
      this.onload(total);
      this.#arrived();
    } catch (error) {
      if (generation === this.#generation) this.onfail(error);
    } finally {
      if (generation === this.#generation) this.node.removeAttribute("aria-busy");
    }
  }

  /** The item at an index, if it has arrived. */
  at(place) {
    return this.#pages.get(Math.floor(place / PAGE))?.[place % PAGE];
  }

  /** Changes the items for which `matches(item)` holds. */
  change(matches, patch) {
    for (const rows of this.#pages.values())
      for (const item of rows ?? []) if (matches(item)) Object.assign(item, patch);
    this.draw();
  }

  /** Marks the row for which `matches(item)` holds, without choosing it. */
  mark(matches) {
    if (this.#picking) return;
    this.#active = -1;
    for (const [page, rows] of this.#pages) {
      const index = rows?.findIndex(matches) ?? -1;
      if (index >= 0) this.#active = page * PAGE + index;
    }
    this.draw();
  }

  /** Chooses the row at an index and scrolls to it. */
  go(place) {
    const index = Math.max(0, Math.min(this.#total - 1, place));
    if (this.#total === 0) return;
    this.#active = index;
    const [top, bottom] = [index * this.height, (index + 1) * this.height];
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    else if (bottom > this.node.scrollTop + this.node.clientHeight)
      this.node.scrollTop = bottom - this.node.clientHeight;
    this.#picking = true;
    this.#arrived();
  }

  /** Draws the rows that arrived, and chooses the row that was waited for. */
  #arrived() {
    this.#active = Math.min(this.#active, this.#total - 1);
    this.draw();
    const item = this.at(this.#active);
    if (!this.#picking || item === undefined) return;
    this.#picking = false;
    this.onpick(item);
  }

  #pressed(event) {
    const step = Math.max(1, Math.floor(this.node.clientHeight / this.height) - 1);
    const targets = {
      ArrowDown: this.#active + 1,
      ArrowUp: this.#active - 1,
      PageDown: this.#active + step,
      PageUp: this.#active - step,
      Home: 0,
      End: this.#total - 1,
      Enter: this.#active,
    };
    if (!Object.hasOwn(targets, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    this.go(targets[event.key]);
  }

  async #request(page) {
    if (this.#pages.has(page)) return;
    const generation = this.#generation;
    this.#pages.set(page, null);
    try {
      const { rows } = await this.fetch(page * PAGE, PAGE);
      if (generation !== this.#generation) return;
      this.#pages.set(page, rows);
      this.#arrived();
    } catch {
      // scrolling there again requests the page again
      if (generation === this.#generation) this.#pages.delete(page);
    }
  }

  /** Draws the visible rows. */
  draw() {
    setVars(this.inner, { height: `${this.#total * this.height}px` });
    const first = Math.max(0, Math.floor(this.node.scrollTop / this.height) - OVERSCAN);
    const last = Math.min(
      this.#total,
      Math.ceil((this.node.scrollTop + this.node.clientHeight) / this.height) + OVERSCAN,
    );
    const rows = [];
    for (let place = first; place < last; place++) {
      const item = this.at(place);
      if (item === undefined) this.#request(Math.floor(place / PAGE));
      const active = place === this.#active;
      rows.push(
        el(
          "div",
          {
            id: `row-${place}`,
            class: `virtual-row ${active ? "active" : ""}`,
            role: "option",
            "aria-selected": String(active),
            "aria-setsize": this.#total,
            "aria-posinset": place + 1,
            "data-at": place,
            vars: { transform: `translateY(${place * this.height}px)`, height: `${this.height}px` },
          },
          item === undefined ? el("span", { class: "soft" }, "…") : this.row(item),
        ),
      );
    }
    setChildren(this.inner, rows);
    const visible = this.#active >= first && this.#active < last;
    if (visible) this.node.setAttribute("aria-activedescendant", `row-${this.#active}`);
    else this.node.removeAttribute("aria-activedescendant");
  }
}
