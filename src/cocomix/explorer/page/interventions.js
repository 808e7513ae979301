// Dials: what is done to each concept, how much, and from which token on.

import { button, el, put } from "./dom.js";
import { concept, decimal } from "./format.js";
import { link } from "./state.js";

/** What can be done: label, hint, and the slider where there is an amount (the number field takes any). */
const ACTIONS = {
  amplify: {
    label: "Amplify",
    hint: "its logit, plus this many times the token's largest",
    min: -8,
    max: 8,
    step: 0.25,
    first: 4,
  },
  dampen: { label: "Dampen", hint: "this share of the way to off", min: 0, max: 1, step: 0.05, first: 0.5 },
  ablate: { label: "Ablate", hint: "never mixed in" },
  clamp: {
    label: "Clamp",
    hint: "its logit, set to this many times the token's largest",
    min: -4,
    max: 4,
    step: 0.1,
    first: 2,
  },
};

/** A new item with the action's first amount. */
export function fresh(id, action = "amplify", start = 0) {
  const { first } = ACTIONS[action];
  return first === undefined ? { concept: id, do: action, start } : { concept: id, do: action, amount: first, start };
}

/** The dials of `items()`; `change(items)` after one was turned; `name(concept)` is its name or null. */
export function dials({ items, change, name }) {
  const node = el("ul", { class: "dials", "aria-label": "Steered concepts" });
  let drawn = null;

  const turned = (at, patch) => {
    const next = items().map((item, place) => (place === at ? { ...item, ...patch } : item));
    drawn = shape(next);
    change(next);
  };

  /** What a dial's controls depend on; its numbers are in the controls themselves. */
  const shape = (all) => JSON.stringify(all.map((item) => [item.concept, item.do, name(item.concept)]));

  function dial(item, at) {
    const action = ACTIONS[item.do] ?? ACTIONS.amplify;
    return el(
      "li",
      { class: "dial", "data-concept": item.concept },
      el(
        "div",
        { class: "dial-head" },
        el("span", { class: "concept-name" }, name(item.concept) ?? el("span", { class: "soft" }, "no name")),
        el(
          "a",
          { class: "number", href: link("concepts", { open: item.concept }), title: "open its dashboard" },
          concept(item.concept),
        ),
        button("×", () => change(items().filter((_, place) => place !== at)), {
          class: "cross",
          "aria-label": `Remove ${concept(item.concept)}`,
        }),
      ),
      el(
        "div",
        { class: "segments", role: "radiogroup", "aria-label": `What is done to ${concept(item.concept)}` },
        Object.entries(ACTIONS).map(([key, { label, hint }]) =>
          el(
            "label",
            { title: hint },
            el("input", {
              type: "radio",
              name: `do-${item.concept}`,
              value: key,
              checked: key === item.do,
              onchange: () =>
                change(items().map((one, place) => (place === at ? fresh(one.concept, key, one.start ?? 0) : one))),
            }),
            el("span", null, label),
          ),
        ),
      ),
      amount(item, at, action),
      el(
        "label",
        { class: "dial-start" },
        el("span", { class: "soft" }, "from token"),
        el("input", {
          type: "number",
          min: 0,
          step: 1,
          value: item.start ?? 0,
          "aria-label": `${concept(item.concept)} from token`,
          oninput: (event) => turned(at, { start: Math.max(0, Math.round(Number(event.target.value) || 0)) }),
        }),
        el("span", { class: "soft" }, action.hint),
      ),
    );
  }

  function amount(item, at, { min, max, step, label }) {
    if (min === undefined) return null;
    const words = `${label} ${concept(item.concept)} by`;
    const slider = el("input", { type: "range", min, max, step, value: item.amount, "aria-label": words });
    const field = el("input", { type: "number", step, value: item.amount, "aria-label": `${words}, as a number` });
    slider.addEventListener("input", () => {
      field.value = slider.value;
      turned(at, { amount: Number(slider.value) });
    });
    field.addEventListener("input", () => {
      if (field.value === "") return; // half typed
      slider.value = field.value;
      turned(at, { amount: Number(field.value) });
    });
    return el("div", { class: "dial-amount" }, slider, field, el("span", { class: "unseen" }, decimal(item.amount)));
  }

  /** Draws them anew where more than a number changed. */
  function draw() {
    const now = shape(items());
    if (now === drawn && node.childElementCount === items().length) return;
    const held = node.contains(document.activeElement) ? document.activeElement : null;
    const where = held?.closest(".dial")?.dataset.concept;
    drawn = now;
    put(node, items().map(dial));
    // a radio that was just chosen keeps the keyboard
    if (where !== undefined) node.querySelector(`[data-concept="${CSS.escape(where)}"] input:checked`)?.focus();
  }

  return {
    node,
    draw,
    redraw() {
      drawn = null;
      draw();
    },
  };
}
