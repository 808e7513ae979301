// Steer: turn concepts while the model writes, beside what it would have written anyway.

import { lines } from "./api.js";
import { announce, button, el, noConcepts, put, trouble } from "./dom.js";
import { dials, fresh } from "./dials.js";
import { Duet } from "./duet.js";
import { namesOf } from "./names.js";
import { conceptPicker } from "./picker.js";
import { share } from "./share.js";
import { examples, textBox } from "./textbox.js";

const HINT = "Add a concept and turn its dial; without one both sides are the same.";
const FIXED =
  "This student predicts concepts but does not mix them in, so there is nothing to turn; choose another above.";
const PROMPT = 60; // characters of an example that make a first prompt

export function steerView(app) {
  const { state } = app;
  const names = namesOf(
    () => state.now.model,
    () => {
      board.redraw();
    },
  );
  let running = null; // an AbortController while tokens stream

  const box = textBox({
    label: "Prompt",
    placeholder: "A beginning for the model to go on with",
    oninput: (prompt) => state.set({ prompt }),
  });
  const board = dials({
    items: () => state.now.steering,
    change: (steering) => state.set({ steering }, { step: true }),
    name: names.of,
  });
  const picker = conceptPicker({ label: "Add a concept to steer", model: () => state.now.model, onpick: add });
  const hint = el("p", { class: "soft small-text dials-hint" });
  const duet = new Duet({ name: names.of });
  const error = el("div");
  const run = button("Run", start, { class: "primary", title: "Ctrl+Enter" });
  const stop = button("Stop", halt, { hidden: true });
  const fields = {
    tokens: number("Tokens", { min: 1, step: 1 }),
    temperature: number("Temperature", { min: 0, step: 0.1 }),
    seed: number("Seed", { min: 0, step: 1 }),
  };
  const sharing = share({ ask: asked, take: (steering) => state.set({ steering }, { step: true }) });

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
      el("section", { class: "card" }, el("h3", null, "Dials"), picker.node, hint, board.node),
    ),
    el(
      "div",
      { class: "output" },
      el(
        "section",
        { class: "card toolbar", "aria-label": "Run" },
        Object.values(fields).map(({ node: one }) => one),
        el("div", { class: "actions" }, stop, run),
      ),
      error,
      duet.node,
      el("section", { class: "card" }, el("h3", null, "Take it along"), sharing.node),
    ),
  );

  function number(label, props) {
    const key = label.toLowerCase();
    const field = el("input", {
      type: "number",
      ...props,
      oninput: () => field.value !== "" && state.set({ [key]: Number(field.value) }),
    });
    return { node: el("label", null, el("span", { class: "soft" }, label), field), field, key };
  }

  function add(row) {
    names.learn(row.concept, row.name);
    if (state.now.steering.some((item) => item.concept === row.concept)) return;
    state.set({ steering: [...state.now.steering, fresh(row.concept)] }, { step: true });
    board.node.querySelector(".dial:last-child input[type=range]")?.focus();
  }

  /** What the server is asked to do. */
  function asked() {
    const { model, prompt, steering, tokens, temperature, seed } = state.now;
    return { model, prompt: prompt ?? "", steering, tokens, temperature, seed };
  }

  function draw() {
    if (state.now.view !== "steer" || !app.predicting.length) return;
    box.show(state.now.prompt ?? "");
    for (const { field, key } of Object.values(fields)) {
      if (Number(field.value) !== state.now[key] || field.value === "") field.value = state.now[key];
    }
    const steerable = app.models.find((model) => model.key === state.now.model)?.steerable;
    hint.hidden = steerable && state.now.steering.length > 0;
    hint.textContent = steerable ? HINT : FIXED;
    state.now.steering.forEach((item) => names.want(item.concept));
    board.draw();
    sharing.refresh();
  }

  async function start() {
    if (!app.predicting.length) return;
    halt();
    const mine = new AbortController();
    running = mine;
    run.disabled = true;
    stop.hidden = false;
    put(error);
    duet.begin(state.now.tokens);
    announce("running");
    try {
      for await (const event of lines("/api/steer", asked(), mine.signal)) {
        if (running !== mine) return;
        if (event.event === "error") throw new Error(event.error);
        duet.hear(event);
      }
      announce("done");
    } catch (problem) {
      if (!mine.signal.aborted) {
        put(error, trouble(problem, start));
        duet.still();
      }
    } finally {
      if (running === mine) rest();
    }
  }

  function rest() {
    running = null;
    run.disabled = false;
    stop.hidden = true;
  }

  function halt() {
    if (running === null) return;
    const mine = running;
    rest();
    mine.abort();
    duet.still("Stopped.");
    announce("stopped");
  }

  state.on(["prompt", "steering", "tokens", "temperature", "seed", "view"], draw);
  state.on(["model"], () => {
    halt();
    names.forget();
    draw();
  });

  return {
    node,
    show() {
      if (!app.predicting.length) return put(node, el("div", { class: "card" }, noConcepts()));
      if (state.now.prompt === null && app.examples.length) state.set({ prompt: beginning(app.examples[0]) });
      draw();
    },
    run: start,
    search: () => picker.focus(),
    close: halt,
  };
}

/** The first words of an example: whole ones, no space at the end. */
function beginning(text) {
  const cut = text.slice(0, PROMPT);
  return (text.length > PROMPT ? cut.slice(0, cut.lastIndexOf(" ")) : cut).trim();
}
