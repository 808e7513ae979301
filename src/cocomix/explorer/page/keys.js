// The keyboard: one table of keys, used both to act and to explain.

import { button, el } from "./dom.js";

const WORDS = [
  ["1 2 3 4", "Read, Concepts, Steer, Compare"],
  ["/", "search concepts"],
  ["← → ↑ ↓", "go from token to token, or along the list"],
  ["Ctrl Enter", "run: read, continue or compare now"],
  ["Esc", "close, stop, or shade by surprise again"],
  ["?", "this help"],
];

const VIEWS_IN_WORDS = [
  ["Read", "the concepts a student predicted at each token, and what they change about the next one"],
  ["Concepts", "every concept: where it is predicted, where it is true, what it does"],
  ["Steer", "turn concepts up or down while the model writes, beside what it would have written"],
  ["Compare", "two students on the same text"],
];

const UNITS = [
  ["strength", "a concept's logit over the token's largest logit magnitude, −1 to 1"],
  ["mixed in", "among the K largest concepts, whose vectors the student goes on with"],
  ["surprise", "−log of the probability a token had, in nats; 0.69 nats is one chance in two"],
];

/** Whether the keys that write text belong to this element. */
function writes(node) {
  return (
    node instanceof HTMLTextAreaElement ||
    node instanceof HTMLSelectElement ||
    (node instanceof HTMLInputElement && !["radio", "range", "checkbox", "button"].includes(node.type))
  );
}

/** Listens; `views` in order, `current()` the view shown, `go(name)` shows one, `help` the dialog. */
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
      if (writes(document.activeElement)) document.activeElement.blur();
      else current()?.close?.();
      return;
    }
    if (help.open || writes(document.activeElement)) return;
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
    el("h2", null, "What this shows"),
    table("Views", VIEWS_IN_WORDS, (name) => name),
    table("Units", UNITS, (name) => name),
    table("Keys", WORDS, (name) => name.split(" ").map((key) => [el("kbd", null, key), " "])),
    el("p", { class: "soft small-text" }, `cocomix ${version}. Everything stays on this machine.`),
    button("Close", () => dialog.close(), { class: "primary" }),
  );
  return dialog;
}
