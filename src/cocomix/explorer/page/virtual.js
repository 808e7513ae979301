// A list of any length: only the rows in sight exist, and only the pages near them are asked for.

import { el, put, setVars } from "./dom.js";

const SPARE = 6; // rows kept above and below those in sight
const PAGE = 100;

export class VirtualList {
  #pages = new Map(); // page -> rows, or null while it is on its way
  #total = 0;
  #active = -1;
  #picking = false; // the active row was chosen before it was there
  #turn = 0;

  /**
   * `height` of a row in pixels; `fetch(offset, limit)` answers {total, rows}; `row(item)` makes a row's content;
   * `onpick(item)` when one is chosen; `onload(total)` and `onfail(error)` after the first page.
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

  /** Forgets all rows and asks for the first ones. */
  async reset() {
    const turn = ++this.#turn;
    this.#pages.clear();
    this.#active = -1;
    this.#picking = false;
    this.node.scrollTop = 0;
    this.node.setAttribute("aria-busy", "true");
    try {
      const { total, rows } = await this.fetch(0, PAGE);
      if (turn !== this.#turn) return;
      this.#total = total;
      this.#pages.set(0, rows);
      this.onload(total);
      this.#arrived();
    } catch (error) {
      if (turn === this.#turn) this.onfail(error);
    } finally {
      if (turn === this.#turn) this.node.removeAttribute("aria-busy");
    }
  }

  /** The row at a place, if it is there. */
  at(place) {
    return this.#pages.get(Math.floor(place / PAGE))?.[place % PAGE];
  }

  /** Changes the rows for which `which(item)` holds. */
  change(which, patch) {
    for (const rows of this.#pages.values()) for (const one of rows ?? []) if (which(one)) Object.assign(one, patch);
    this.draw();
  }

  /** Marks the row for which `which(item)` holds, without choosing it. */
  mark(which) {
    if (this.#picking) return;
    this.#active = -1;
    for (const [page, rows] of this.#pages) {
      const found = rows?.findIndex(which) ?? -1;
      if (found >= 0) this.#active = page * PAGE + found;
    }
    this.draw();
  }

  /** Chooses the row at a place and brings it in sight. */
  go(place) {
    const to = Math.max(0, Math.min(this.#total - 1, place));
    if (this.#total === 0) return;
    this.#active = to;
    const [top, bottom] = [to * this.height, (to + 1) * this.height];
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    else if (bottom > this.node.scrollTop + this.node.clientHeight)
      this.node.scrollTop = bottom - this.node.clientHeight;
    this.#picking = true;
    this.#arrived();
  }

  /** Draws what came in, and chooses the row that waited for it. */
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
    const to = {
      ArrowDown: this.#active + 1,
      ArrowUp: this.#active - 1,
      PageDown: this.#active + step,
      PageUp: this.#active - step,
      Home: 0,
      End: this.#total - 1,
      Enter: this.#active,
    };
    if (!Object.hasOwn(to, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    this.go(to[event.key]);
  }

  async #need(page) {
    if (this.#pages.has(page)) return;
    const turn = this.#turn;
    this.#pages.set(page, null);
    try {
      const { rows } = await this.fetch(page * PAGE, PAGE);
      if (turn !== this.#turn) return;
      this.#pages.set(page, rows);
      this.#arrived();
    } catch {
      // scrolling there again asks again
      if (turn === this.#turn) this.#pages.delete(page);
    }
  }

  /** Makes the rows in sight. */
  draw() {
    setVars(this.inner, { height: `${this.#total * this.height}px` });
    const first = Math.max(0, Math.floor(this.node.scrollTop / this.height) - SPARE);
    const last = Math.min(this.#total, Math.ceil((this.node.scrollTop + this.node.clientHeight) / this.height) + SPARE);
    const rows = [];
    for (let place = first; place < last; place++) {
      const item = this.at(place);
      if (item === undefined) this.#need(Math.floor(place / PAGE));
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
    put(this.inner, rows);
    const shown = this.#active >= first && this.#active < last;
    if (shown) this.node.setAttribute("aria-activedescendant", `row-${this.#active}`);
    else this.node.removeAttribute("aria-activedescendant");
  }
}
