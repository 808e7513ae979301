// A text box that grows with its text, and buttons for example texts.

import { button, el } from "./dom.js";

/** `oninput(text)` is called when the user types; `show(text)` sets the text. */
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
      // setting the value moves the caret, so only if it changed
      if (area.value !== text) area.value = text;
      fit();
    },
  };
}

const LABEL_LENGTH = 44; // characters of an example on its button

/** One button for each text; `onpick(text)` gets the whole text. */
export function examples(texts, onpick) {
  if (texts.length === 0) return null;
  return el(
    "div",
    { class: "examples" },
    el("span", { class: "soft" }, "Examples"),
    texts.map((text) =>
      button(text.length > LABEL_LENGTH ? `${text.slice(0, LABEL_LENGTH).trimEnd()}…` : text, () => onpick(text), {
        class: "example",
        title: text,
      }),
    ),
  );
}
