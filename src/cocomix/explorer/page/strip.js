// A text as its tokens: inline chips that can be shaded, marked and selected with the arrow keys.

import { el, setChildren, setVars } from "./dom.js";
import { visible } from "./format.js";

export class Strip {
  #chips = [];
  #texts = null;
  #at = -1;
  #onselect;

  /** `onselect(index)` when the user selects a token; without it tokens cannot be selected. */
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

  /** Shows these tokens (texts). Keeps the chips if the tokens are the same as before. */
  show(texts) {
    if (
      this.#texts !== null &&
      texts.length === this.#texts.length &&
      texts.every((text, index) => text === this.#texts[index])
    )
      return;
    this.clear();
    texts.forEach((text) => this.add(text));
  }

  clear() {
    this.#texts = [];
    this.#chips = [];
    this.#at = -1;
    setChildren(this.node);
  }

  /** Appends a token; returns its index. */
  add(text) {
    const at = this.#chips.length;
    const role = this.#onselect ? { role: "option", tabindex: "-1", "aria-selected": "false", "data-at": at } : {};
    const chip = el("span", { class: "token", ...role }, visible(text));
    this.node.append(chip);
    if (text.endsWith("\n")) this.node.append(el("br"));
    this.#texts.push(text);
    this.#chips.push(chip);
    return at;
  }

  /**
   * Shades a chip: `level`, 0 to 1, of the tone (a class: strength, against, loss, left, right); `marks` (classes:
   * used, agreed, differs, first, present, prompt); `title`, the same in words.
   */
  paint(at, { level = 0, tone = "", marks = [], title = "" }) {
    const chip = this.#chips[at];
    chip.className = ["token", tone, ...marks].filter(Boolean).join(" ");
    setVars(chip, { "--level": Math.max(0, Math.min(1, level)).toFixed(3) });
    chip.title = title;
    if (this.#onselect)
      chip.setAttribute("aria-label", title ? `${visible(this.#texts[at])}, ${title}` : visible(this.#texts[at]));
  }

  /** Marks a token as selected; `focus` also gives it the keyboard. */
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

  /** Moves the selection by `step` tokens. */
  move(step) {
    this.#go(this.#at + step);
  }

  #go(at) {
    if (this.#chips.length === 0) return;
    const index = Math.max(0, Math.min(this.#chips.length - 1, at));
    this.select(index, { focus: true });
    this.#onselect(index);
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

  /** The nearest token in the next line in that direction; the same token if there is no line. */
  #line(direction) {
    const selected = this.#chips[this.#at];
    if (!selected) return 0;
    let best = this.#at;
    let line = null;
    for (let at = this.#at + direction; at >= 0 && at < this.#chips.length; at += direction) {
      const { offsetTop, offsetLeft } = this.#chips[at];
      if (Math.abs(offsetTop - selected.offsetTop) < 4) continue;
      line ??= offsetTop;
      if (Math.abs(offsetTop - line) >= 4) break;
      const nearer =
        Math.abs(offsetLeft - selected.offsetLeft) < Math.abs(this.#chips[best].offsetLeft - selected.offsetLeft);
      if (best === this.#at || nearer) best = at;
    }
    return best;
  }
}
