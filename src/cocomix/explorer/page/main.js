// Starts the page: signs in, requests the list of models, creates the views, and shows the one that the address names.

import { get } from "./api.js";
import { compareView } from "./compare.js";
import { conceptsView } from "./concepts.js";
import { button, el, errorBox, setChildren, skeleton } from "./dom.js";
import { helpDialog, listen } from "./keys.js";
import { readView } from "./read.js";
import { signIn } from "./session.js";
import { State } from "./state.js";
import { steerView } from "./steer.js";

const VIEWS = [
  ["read", "Read", readView],
  ["concepts", "Concepts", conceptsView],
  ["steer", "Steer", steerView],
  ["compare", "Compare", compareView],
];
const NAMES = VIEWS.map(([name]) => name);

const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
const select = document.getElementById("model");
const state = new State();

async function start() {
  setChildren(main, el("div", { class: "card" }, skeleton(6, "Loading the run")));
  try {
    await signIn();
    build(await get("api/models"));
  } catch (error) {
    setChildren(main, el("div", { class: "card" }, errorBox(error, start)));
  }
}

function build({ models, examples, version }) {
  const withConcepts = models.filter((model) => model.predicts_concepts);
  const app = { state, models, examples, withConcepts };
  // before the views listen, because links may name a model or concept that does not exist
  state.on(["model", "left", "right", "concept", "open"], () => correctState(models, withConcepts));
  correctState(models, withConcepts);
  const views = new Map(VIEWS.map(([name, , create]) => [name, create(app)]));
  const frames = VIEWS.map(([name]) =>
    el(
      "section",
      { id: `view-${name}`, class: "view", role: "tabpanel", "aria-labelledby": `tab-${name}`, hidden: true },
      views.get(name).node,
    ),
  );
  const go = (name) => state.set({ view: name, at: null }, { step: true });
  const buttons = VIEWS.map(([name, label], index) =>
    button([label, el("kbd", { "aria-hidden": "true" }, index + 1)], () => go(name), {
      id: `tab-${name}`,
      role: "tab",
      "aria-label": label,
      "aria-controls": `view-${name}`,
      onkeydown: (event) => moveTab(event, index, go),
    }),
  );
  const help = helpDialog(version);
  setChildren(tabs, buttons);
  setChildren(main, frames, help);
  fillModelSelect(withConcepts);

  function show() {
    const { view, model } = state.now;
    NAMES.forEach((name, index) => {
      frames[index].hidden = name !== view;
      buttons[index].setAttribute("aria-selected", String(name === view));
      buttons[index].tabIndex = name === view ? 0 : -1;
    });
    document.title = `${VIEWS[NAMES.indexOf(view)][1]} · CoCoMix explorer`;
    select.value = model ?? "";
    select.closest("label").classList.toggle("idle", view === "compare");
    views.get(view).show();
  }

  state.on(["view"], show);
  state.on(["model"], () => {
    select.value = state.now.model ?? "";
  });
  document.getElementById("help").addEventListener("click", () => help.showModal());
  document.getElementById("skip").addEventListener("click", () => main.focus());
  listen({ views: NAMES, current: () => views.get(state.now.view), go, help });
  show();
}

/** Chooses a model if the address names none or an unknown one, and drops concepts that the model does not have. */
function correctState(models, withConcepts) {
  const exists = (key) => models.some((model) => model.key === key);
  const chosen = withConcepts.find((model) => model.key === state.now.model) ?? withConcepts[0];
  const model = chosen?.key ?? null;
  const existing = (id) => (id !== null && id < (chosen?.n_concepts ?? 0) ? id : null);
  const left = exists(state.now.left)
    ? state.now.left
    : ((models.find((other) => !other.predicts_concepts) ?? models[0])?.key ?? null);
  const right = exists(state.now.right) ? state.now.right : (model ?? models.at(-1)?.key ?? null);
  state.set({ model, left, right, concept: existing(state.now.concept), open: existing(state.now.open) });
}

function fillModelSelect(withConcepts) {
  setChildren(
    select,
    withConcepts.map((model) => el("option", { value: model.key }, model.label)),
  );
  select.disabled = withConcepts.length < 2;
  select.addEventListener("change", () => state.set({ model: select.value }, { step: true }));
}

/** Left and right arrow keys on the tabs. */
function moveTab(event, index, go) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  const name = NAMES[(index + step + NAMES.length) % NAMES.length];
  go(name);
  document.getElementById(`tab-${name}`).focus();
}

start();
