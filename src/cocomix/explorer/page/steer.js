// Steer: a continuation with interventions on concepts, beside the one without.

import { lines } from "./api.js";
import { announce, button, el, errorBox, noConcepts, setChildren } from "./dom.js";
import { interventionList, newItem } from "./interventions.js";
import { PairedGeneration } from "./paired_generation.js";
import { conceptPicker, nameCache } from "./picker.js";
import { presetGallery } from "./presets.js";
import { snippetBox } from "./snippets.js";
import { examples, textBox } from "./textbox.js";

const HINT = "Add a concept and set its intervention. Without one, both texts are the same.";
const NOT_STEERABLE =
  "This student predicts concepts but does not mix them in, so it cannot be steered; choose another model above.";
const PROMPT_LENGTH = 60; // characters of an example that become a prompt

export function steerView(app) {
  const { state } = app;
  const names = nameCache(
    () => state.now.model,
    () => interventions.redraw(),
  );
  let running = null; // an AbortController while tokens stream

  const box = textBox({
    label: "Prompt",
    placeholder: "A beginning for the model to continue",
    oninput: (prompt) => state.set({ prompt }),
  });
  const interventions = interventionList({
    items: () => state.now.steering,
    change: (steering) => state.set({ steering }, { step: true }),
    name: names.get,
  });
  const presets = presetGallery({
    onload: (list) => list.forEach((preset) => names.set(preset.concept, preset.name)),
    onpick: ({ concept, strength }) => {
      state.set({ steering: [{ ...newItem(concept), amount: strength }] }, { step: true });
      start();
    },
  });
  const gallery = el("section", { class: "card" }, el("h3", null, "Concepts that steer best"), presets.node);
  const picker = conceptPicker({ label: "Add a concept to steer", model: () => state.now.model, onpick: add });
  const hint = el("p", { class: "soft small-text interventions-hint" });
  const generation = new PairedGeneration({ name: names.get });
  const errors = el("div");
  const runButton = button("Run", start, { class: "primary", title: "Ctrl+Enter" });
  const stopButton = button("Stop", stop, { hidden: true });
  const fields = [
    numberField("Tokens", { min: 1, step: 1 }),
    numberField("Temperature", { min: 0, step: 0.1 }),
    numberField("Seed", { min: 0, step: 1 }),
  ];
  const snippets = snippetBox({ setting: request, apply: (steering) => state.set({ steering }, { step: true }) });

  const node = el(
    "div",
    { class: "steer" },
    el(
      "div",
      { class: "controls" },
      el(
        "section",
        { class: "card" },
        el("h3", null, "Prompt"),
        box.node,
        examples(app.examples.map(beginning), (prompt) => state.set({ prompt })),
      ),
      gallery,
      el("section", { class: "card" }, el("h3", null, "Interventions"), picker.node, hint, interventions.node),
    ),
    el(
      "div",
      { class: "output" },
      el(
        "section",
        { class: "card toolbar", "aria-label": "Run" },
        fields.map((field) => field.node),
        el("div", { class: "actions" }, stopButton, runButton),
      ),
      errors,
      generation.node,
      el("section", { class: "card" }, el("h3", null, "Use this setting elsewhere"), snippets.node),
    ),
  );

  function numberField(label, props) {
    const key = label.toLowerCase();
    const input = el("input", {
      type: "number",
      ...props,
      oninput: () => input.value !== "" && state.set({ [key]: Number(input.value) }),
    });
    return { node: el("label", null, el("span", { class: "soft" }, label), input), input, key };
  }

  function add(row) {
    names.set(row.concept, row.name);
    if (state.now.steering.some((item) => item.concept === row.concept)) return;
    state.set({ steering: [...state.now.steering, newItem(row.concept)] }, { step: true });
    interventions.node.querySelector(".intervention:last-child input[type=range]")?.focus();
  }

  /** The body of the server's SteerRequest. */
  function request() {
    const { model, prompt, steering, tokens, temperature, seed } = state.now;
    return { model, prompt: prompt ?? "", steering, tokens, temperature, seed };
  }

  function draw() {
    if (state.now.view !== "steer" || !app.withConcepts.length) return;
    box.show(state.now.prompt ?? "");
    for (const { input, key } of fields) {
      if (Number(input.value) !== state.now[key] || input.value === "") input.value = state.now[key];
    }
    const steerable = app.models.find((model) => model.key === state.now.model)?.steerable;
    hint.hidden = steerable && state.now.steering.length > 0;
    hint.textContent = steerable ? HINT : NOT_STEERABLE;
    gallery.hidden = !steerable;
    if (steerable) presets.show(state.now.model);
    state.now.steering.forEach((item) => names.request(item.concept));
    interventions.draw();
    snippets.refresh();
  }

  async function start() {
    if (!app.withConcepts.length) return;
    stop();
    const controller = new AbortController();
    running = controller;
    runButton.disabled = true;
    stopButton.hidden = false;
    setChildren(errors);
    generation.begin(state.now.tokens);
    announce("running");
    try {
      for await (const event of lines("api/steer", request(), controller.signal)) {
        if (running !== controller) return;
        if (event.event === "error") throw new Error(event.error);
        generation.handle(event);
      }
      announce("done");
    } catch (error) {
      if (!controller.signal.aborted) {
        setChildren(errors, errorBox(error, start));
        generation.finish();
      }
    } finally {
      if (running === controller) showIdle();
    }
  }

  function showIdle() {
    running = null;
    runButton.disabled = false;
    stopButton.hidden = true;
  }

  function stop() {
    if (running === null) return;
    const controller = running;
    showIdle();
    controller.abort();
    generation.finish("Stopped.");
    announce("stopped");
  }

  state.on(["prompt", "steering", "tokens", "temperature", "seed", "view"], draw);
  state.on(["model"], () => {
    stop();
    names.clear();
    draw();
  });

  return {
    node,
    show() {
      if (!app.withConcepts.length) return setChildren(node, el("div", { class: "card" }, noConcepts()));
      if (state.now.prompt === null && app.examples.length) state.set({ prompt: beginning(app.examples[0]) });
      draw();
    },
    run: start,
    search: () => picker.focus(),
    close: stop,
  };
}

/** The first words of an example: whole words, no space at the end. */
function beginning(text) {
  const cut = text.slice(0, PROMPT_LENGTH);
  return (text.length > PROMPT_LENGTH ? cut.slice(0, cut.lastIndexOf(" ")) : cut).trim();
}
