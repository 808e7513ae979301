// A text as its tokens: inline chips that can be shaded, marked, and walked with the arrow keys.

import { el, put, setVars } from "./dom.js";
import { seen } from "./format.js";

export class Strip {
  #chips = [];
  #texts = null;
  #at = -1;
  #onselect;

  /** `onselect(index)` when a person goes to a token; without it tokens are only looked at. */
  constructor({ label, onselect = null }) {
    this.#onselect = onselect;
    const role = onselect ? { role: "listbox", "aria-orientation": "horizontal" } : { role: "group" };
    this.node = el("div", { class: "strip", "aria-label": label, ...role });
    if (onselect) {
      this.node.addEventListener("click", (event) => this.#clicked(event));
      this.node.addEventListener("keydown", (event) => this.#pressed(event));
    }
  }

  get length() {
    return this.#chips.length;
  }

  /** Shows these tokens (texts), keeping the chips where they are the same as before. */
  show(texts) {
    if (
      this.#texts !== null &&
      texts.length === this.#texts.length &&
      texts.every((one, at) => one === this.#texts[at])
    )
      return;
    this.clear();
    texts.forEach((one) => this.add(one));
  }

  clear() {
    this.#texts = [];
    this.#chips = [];
    this.#at = -1;
    put(this.node);
  }

  /** One more token at the end; its chip's index. */
  add(text) {
    const at = this.#chips.length;
    const role = this.#onselect ? { role: "option", tabindex: "-1", "aria-selected": "false", "data-at": at } : {};
    const chip = el("span", { class: "token", ...role }, seen(text));
    this.node.append(chip);
    if (text.endsWith("\n")) this.node.append(el("br"));
    this.#texts.push(text);
    this.#chips.push(chip);
    return at;
  }

  /**
   * Shades a chip: `level` 0 to 1 of the tone (a class: strength, against, loss, left, right), `marks` (classes:
   * used, agreed, differs, first, prompt), `title` the words for it.
   */
  paint(at, { level = 0, tone = "", marks = [], title = "" }) {
    const chip = this.#chips[at];
    chip.className = ["token", tone, ...marks].filter(Boolean).join(" ");
    setVars(chip, { "--level": Math.max(0, Math.min(1, level)).toFixed(3) });
    chip.title = title;
    if (this.#onselect)
      chip.setAttribute("aria-label", title ? `${seen(this.#texts[at])}, ${title}` : seen(this.#texts[at]));
  }

  /** Marks a token as the one looked at; with `focus` the keyboard goes there. */
  select(at, { focus = false } = {}) {
    const before = this.#chips[this.#at];
    if (before) {
      before.setAttribute("aria-selected", "false");
      before.tabIndex = -1;
    }
    this.#at = at;
    const chip = this.#chips[at];
    if (!chip) return;
    chip.setAttribute("aria-selected", "true");
    chip.tabIndex = 0;
    if (focus) chip.focus();
  }

  /** Goes `step` tokens on. */
  move(step) {
    this.#go(this.#at + step);
  }

  #go(at) {
    if (this.#chips.length === 0) return;
    const to = Math.max(0, Math.min(this.#chips.length - 1, at));
    this.select(to, { focus: true });
    this.#onselect(to);
  }

  #clicked(event) {
    const chip = event.target.closest(".token");
    if (chip) this.#go(Number(chip.dataset.at));
  }

  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = {
      ArrowRight: () => this.move(1),
      ArrowLeft: () => this.move(-1),
      ArrowDown: () => this.#go(this.#line(1)),
      ArrowUp: () => this.#go(this.#line(-1)),
      Home: () => this.#go(0),
      End: () => this.#go(this.#chips.length - 1),
    };
    if (!Object.hasOwn(steps, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    steps[event.key]();
  }

  /** The token nearest in the next line that way, else the same. */
  #line(direction) {
    const here = this.#chips[this.#at];
    if (!here) return 0;
    let best = this.#at;
    let line = null;
    for (let at = this.#at + direction; at >= 0 && at < this.#chips.length; at += direction) {
      const { offsetTop, offsetLeft } = this.#chips[at];
      if (Math.abs(offsetTop - here.offsetTop) < 4) continue;
      line ??= offsetTop;
      if (Math.abs(offsetTop - line) >= 4) break;
      const nearer = Math.abs(offsetLeft - here.offsetLeft) < Math.abs(this.#chips[best].offsetLeft - here.offsetLeft);
      if (best === this.#at || nearer) best = at;
    }
    return best;
  }
}
