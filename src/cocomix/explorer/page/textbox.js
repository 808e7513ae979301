// A box to type into that grows with its text, and the examples that go with it.

import { button, el } from "./dom.js";

/** `oninput(text)` at every change a person makes; `show(text)` puts one there. */
export function textBox({ label, placeholder, oninput, rows = 2 }) {
  const area = el("textarea", {
    rows,
    placeholder,
    "aria-label": label,
    spellcheck: "false",
    oninput: () => {
      fit();
      oninput(area.value);
    },
  });

  function fit() {
    area.style.height = "auto";
    if (area.scrollHeight) area.style.height = `${area.scrollHeight + 2}px`;
  }

  return {
    node: area,
    get text() {
      return area.value;
    },
    show(text) {
      // setting a value moves the caret, so only when it is another
      if (area.value !== text) area.value = text;
      fit();
    },
  };
}

const SHOWN = 44; // characters of an example on its button

/** A button each; `take(text)` gets the whole of it. */
export function examples(texts, take) {
  if (texts.length === 0) return null;
  return el(
    "div",
    { class: "examples" },
    el("span", { class: "soft" }, "Examples"),
    texts.map((text) =>
      button(text.length > SHOWN ? `${text.slice(0, SHOWN).trimEnd()}…` : text, () => take(text), {
        class: "example",
        title: text,
      }),
    ),
  );
}
