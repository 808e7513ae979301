// The interventions: what is done to each steered concept, how strongly, and from which token on.

import { button, el, setChildren } from "./dom.js";
import { concept, decimal } from "./format.js";
import { link } from "./state.js";

/** Every action: label, hint and, if it takes an amount, the slider's range. The number field takes any value. */
const ACTIONS = {
  amplify: {
    label: "Amplify",
    hint: "adds this many times the token's largest logit",
    min: -8,
    max: 8,
    step: 0.25,
    initial: 4,
  },
  dampen: {
    label: "Dampen",
    hint: "moves its logit this share of the way to off",
    min: 0,
    max: 1,
    step: 0.05,
    initial: 0.5,
  },
  ablate: { label: "Ablate", hint: "never mixed in" },
  clamp: {
    label: "Clamp",
    hint: "sets its logit to this many times the token's largest",
    min: -4,
    max: 4,
    step: 0.1,
    initial: 2,
  },
};

/** A new item with the action's initial amount. */
export function newItem(id, action = "amplify", start = 0) {
  const { initial } = ACTIONS[action];
  const amount = initial === undefined ? {} : { amount: initial };
  return { concept: id, do: action, ...amount, start };
}

/** Controls for `items()`; `change(items)` after a change; `name(concept)` is its name or null. */
export function interventionList({ items, change, name }) {
  const node = el("ul", { class: "interventions", "aria-label": "Steered concepts" });
  let drawn = null; // what the controls on the page were drawn from

  const update = (index, patch) => {
    const next = items().map((item, place) => (place === index ? { ...item, ...patch } : item));
    drawn = layout(next);
    change(next);
  };

  /** What decides which controls there are; the numbers are in the controls themselves. */
  const layout = (list) => JSON.stringify(list.map((item) => [item.concept, item.do, name(item.concept)]));

  function controls(item, index) {
    const action = ACTIONS[item.do] ?? ACTIONS.amplify;
    return el(
      "li",
      { class: "intervention", "data-concept": item.concept },
      el(
        "div",
        { class: "intervention-head" },
        el("span", { class: "concept-name" }, name(item.concept) ?? el("span", { class: "soft" }, "no name")),
        el(
          "a",
          { class: "number", href: link("concepts", { open: item.concept }), title: "open this concept's page" },
          concept(item.concept),
        ),
        button("×", () => change(items().filter((_, place) => place !== index)), {
          class: "cross",
          "aria-label": `Remove ${concept(item.concept)}`,
        }),
      ),
      el(
        "div",
        { class: "segments", role: "radiogroup", "aria-label": `Intervention on ${concept(item.concept)}` },
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
                change(
                  items().map((old, place) => (place === index ? newItem(old.concept, key, old.start ?? 0) : old)),
                ),
            }),
            el("span", null, label),
          ),
        ),
      ),
      amount(item, index, action),
      el(
        "label",
        { class: "intervention-start" },
        el("span", { class: "soft" }, "from token"),
        el("input", {
          type: "number",
          min: 0,
          step: 1,
          value: item.start ?? 0,
          "aria-label": `${concept(item.concept)} from token`,
          oninput: (event) => update(index, { start: Math.max(0, Math.round(Number(event.target.value) || 0)) }),
        }),
        el("span", { class: "soft" }, action.hint),
      ),
    );
  }

  function amount(item, index, { min, max, step, label }) {
    if (min === undefined) return null;
    const words = `${label} ${concept(item.concept)} by`;
    const slider = el("input", { type: "range", min, max, step, value: item.amount, "aria-label": words });
    const field = el("input", { type: "number", step, value: item.amount, "aria-label": `${words}, as a number` });
    slider.addEventListener("input", () => {
      field.value = slider.value;
      update(index, { amount: Number(slider.value) });
    });
    field.addEventListener("input", () => {
      if (field.value === "") return; // half typed
      slider.value = field.value;
      update(index, { amount: Number(field.value) });
    });
    return el(
      "div",
      { class: "intervention-amount" },
      slider,
      field,
      el("span", { class: "unseen" }, decimal(item.amount)),
    );
  }

  /** Draws the controls again if more than a number changed. */
  function draw() {
    const current = layout(items());
    if (current === drawn && node.childElementCount === items().length) return;
    const focused = node.contains(document.activeElement) ? document.activeElement : null;
    const focusedConcept = focused?.closest(".intervention")?.dataset.concept;
    drawn = current;
    setChildren(node, items().map(controls));
    // a radio button that was just chosen keeps the focus
    if (focusedConcept !== undefined)
      node.querySelector(`[data-concept="${CSS.escape(focusedConcept)}"] input:checked`)?.focus();
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
