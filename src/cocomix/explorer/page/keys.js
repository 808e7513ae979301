// Keyboard shortcuts, and the help dialog that explains them.

import { button, el } from "./dom.js";

const KEYS = [
  ["1 2 3 4", "Read, Concepts, Steer, Compare"],
  ["/", "search concepts"],
  ["← → ↑ ↓", "move between tokens, or in the list"],
  ["Ctrl Enter", "run now: read, generate or compare"],
  ["Esc", "close, stop, or shade by surprise again"],
  ["?", "show this help"],
];

const VIEWS = [
  ["Read", "which concepts the student predicts at each token, and how they change the next token"],
  ["Concepts", "every concept: where it is predicted, where it is true, and what it does"],
  ["Steer", "change concepts while the model generates, beside what it generates without the change"],
  ["Compare", "two students on the same text"],
];

const UNITS = [
  ["strength", "a concept's logit divided by the token's largest logit magnitude, −1 to 1"],
  ["mixed in", "among the K largest concepts, whose vectors the student uses"],
  ["surprise", "−log of the token's probability, in nats; 0.69 nats is a probability of one half"],
];

/** Whether keys type text into this element. */
function takesText(node) {
  return (
    node instanceof HTMLTextAreaElement ||
    node instanceof HTMLSelectElement ||
    (node instanceof HTMLInputElement && !["radio", "range", "checkbox", "button"].includes(node.type))
  );
}

/** Handles the keys. `views` are the names in order, `current()` is the view on screen, `go(name)` shows one. */
export function listen({ views, current, go, help }) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      current()?.run?.();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (help.open) return; // the dialog closes itself
      if (takesText(document.activeElement)) document.activeElement.blur();
      else current()?.close?.();
      return;
    }
    if (help.open || takesText(document.activeElement)) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const number = Number(event.key) - 1;
    if (event.key === "?") help.showModal();
    else if (event.key === "/") {
      if (!current()?.search) go("concepts");
      current()?.search?.();
    } else if (step !== undefined && document.activeElement === document.body) current()?.move?.(step);
    else if (event.key !== " " && views[number]) go(views[number]);
    else return;
    event.preventDefault();
  });
}

/** The dialog that explains the views, the units and the keys. */
export function helpDialog(version) {
  const table = (title, rows, term) => [
    el("h3", null, title),
    el(
      "dl",
      { class: "help-list" },
      rows.map(([name, words]) => el("div", null, el("dt", null, term(name)), el("dd", null, words))),
    ),
  ];
  const dialog = el(
    "dialog",
    { class: "card help", "aria-label": "Help and keys" },
    el("h2", null, "Help"),
    table("Views", VIEWS, (name) => name),
    table("Units", UNITS, (name) => name),
    table("Keys", KEYS, (name) => name.split(" ").map((key) => [el("kbd", null, key), " "])),
    el("p", { class: "soft small-text" }, `cocomix ${version}. The page loads nothing from other servers.`),
    button("Close", () => dialog.close(), { class: "primary" }),
  );
  return dialog;
}
