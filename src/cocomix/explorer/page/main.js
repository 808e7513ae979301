// Starts the page: asks which models there are, makes the views, and shows the one the address names.

import { get } from "./api.js";
import { compareView } from "./compare.js";
import { conceptsView } from "./concepts.js";
import { button, el, put, skeleton, trouble } from "./dom.js";
import { helpDialog, listen } from "./keys.js";
import { readView } from "./read.js";
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
  put(main, el("div", { class: "card" }, skeleton(6, "Loading the run")));
  try {
    build(await get("/api/models"));
  } catch (error) {
    put(main, el("div", { class: "card" }, trouble(error, start)));
  }
}

function build({ models, examples, version }) {
  const predicting = models.filter((model) => model.predicts_concepts);
  const app = { state, models, examples, predicting };
  // before the views listen: links can name a model or a concept that is not here
  state.on(["model", "left", "right", "concept", "open"], () => settle(models, predicting));
  settle(models, predicting);
  const made = new Map(VIEWS.map(([name, , make]) => [name, make(app)]));
  const frames = VIEWS.map(([name]) =>
    el(
      "section",
      { id: `view-${name}`, class: "view", role: "tabpanel", "aria-labelledby": `tab-${name}`, hidden: true },
      made.get(name).node,
    ),
  );
  const go = (name) => state.set({ view: name, at: null }, { step: true });
  const buttons = VIEWS.map(([name, label], at) =>
    button([label, el("kbd", { "aria-hidden": "true" }, at + 1)], () => go(name), {
      id: `tab-${name}`,
      role: "tab",
      "aria-label": label,
      "aria-controls": `view-${name}`,
      onkeydown: (event) => walk(event, at, go),
    }),
  );
  const help = helpDialog(version);
  put(tabs, buttons);
  put(main, frames, help);
  chooseModel(predicting);

  function show() {
    const { view, model } = state.now;
    NAMES.forEach((name, at) => {
      frames[at].hidden = name !== view;
      buttons[at].setAttribute("aria-selected", String(name === view));
      buttons[at].tabIndex = name === view ? 0 : -1;
    });
    document.title = `${VIEWS[NAMES.indexOf(view)][1]} · CoCoMix explorer`;
    select.value = model ?? "";
    select.closest("label").classList.toggle("idle", view === "compare");
    made.get(view).show();
  }

  state.on(["view"], show);
  state.on(["model"], () => {
    select.value = state.now.model ?? "";
  });
  document.getElementById("help").addEventListener("click", () => help.showModal());
  document.getElementById("skip").addEventListener("click", () => main.focus());
  listen({ views: NAMES, current: () => made.get(state.now.view), go, help });
  show();
}

/** Puts a model that is here where the address names none or another, and drops concepts that model does not have. */
function settle(models, predicting) {
  const here = (key) => models.some((model) => model.key === key);
  const chosen = predicting.find((one) => one.key === state.now.model) ?? predicting[0];
  const model = chosen?.key ?? null;
  const known = (id) => (id !== null && id < (chosen?.n_concepts ?? 0) ? id : null);
  const left = here(state.now.left)
    ? state.now.left
    : ((models.find((one) => !one.predicts_concepts) ?? models[0])?.key ?? null);
  const right = here(state.now.right) ? state.now.right : (model ?? models.at(-1)?.key ?? null);
  state.set({ model, left, right, concept: known(state.now.concept), open: known(state.now.open) });
}

function chooseModel(predicting) {
  put(
    select,
    predicting.map((model) => el("option", { value: model.key }, model.label)),
  );
  select.disabled = predicting.length < 2;
  select.addEventListener("change", () => state.set({ model: select.value }, { step: true }));
}

/** Arrow keys along the tabs. */
function walk(event, at, go) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  const to = (at + step + NAMES.length) % NAMES.length;
  go(NAMES[to]);
  document.getElementById(`tab-${NAMES[to]}`).focus();
}

start();
