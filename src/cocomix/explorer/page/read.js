// Read: a text as the student sees it, read anew while one types.

import { post } from "./api.js";
import { announce, button, el, empty, noConcepts, put, skeleton, trouble } from "./dom.js";
import { called, concept, decimal, mean } from "./format.js";
import { tokenPanel } from "./panel.js";
import { Strip } from "./strip.js";
import { link } from "./state.js";
import { examples, textBox } from "./textbox.js";
import { Latest, later } from "./timing.js";

const TOP = 8;
const MOST_SURPRISE = 8; // nats at which the shade is full; 8 nats is one chance in 3000

export function readView(app) {
  const { state } = app;
  const asking = new Latest();
  let reading = null;

  const box = textBox({ label: "Text to read", placeholder: "Type or paste a text", oninput: typed });
  const strip = new Strip({ label: "The text's tokens", onselect: (at) => state.set({ at }) });
  const legend = el("div", { class: "legend" });
  const summary = el("p", { class: "soft summary" });
  const board = el("div", { class: "board" });
  const panel = el("aside", { class: "card side", "aria-label": "The token looked at" });
  const again = later(250, ask);
  const node = el(
    "div",
    { class: "read" },
    el(
      "div",
      { class: "card" },
      box.node,
      examples(app.examples, (text) => state.set({ text, at: null })),
      el("hr"),
      board,
    ),
    panel,
  );

  function typed(text) {
    state.set({ text, at: null });
    again();
  }

  function ask() {
    again.stop();
    box.show(state.now.text ?? "");
    const { model, text, concept: chosen } = state.now;
    if (!app.predicting.length) return nothingPredicts();
    if (!text) return nothing();
    if (reading === null) put(board, skeleton(4, "Reading"));
    board.setAttribute("aria-busy", "true");
    asking.run((signal) => post("/api/read", { model, text, concept: chosen, top: TOP }, signal), show, failed);
  }

  function show(answer) {
    reading = answer;
    board.removeAttribute("aria-busy");
    strip.show(answer.tokens.map((token) => token.token));
    put(board, strip.node, legend, summary);
    paint();
    look();
    summary.textContent = words(answer);
    announce(`${answer.tokens.length} tokens read`);
  }

  function failed(error) {
    reading = null;
    board.removeAttribute("aria-busy");
    put(board, trouble(error, ask));
    put(panel);
  }

  function nothing() {
    asking.stop();
    reading = null;
    put(board, empty("Nothing to read yet", "Type a text above, or take one of the examples."));
    put(panel, empty("No token", "Its concepts and odds will be here."));
  }

  function nothingPredicts() {
    put(board, noConcepts());
    put(panel);
  }

  /** Shades every token by surprise, or by the chosen concept: from the lists at hand until its reading is there. */
  function paint() {
    const chosen = state.now.concept;
    reading.tokens.forEach((token, at) => {
      strip.paint(at, chosen === null ? bySurprise(token) : byConcept(predictedOf(token, chosen)));
    });
    put(legend, chosen === null ? surpriseLegend() : conceptLegend(chosen));
  }

  function predictedOf(token, chosen) {
    if (token.chosen?.concept === chosen) return token.chosen;
    return token.concepts.find((one) => one.concept === chosen) ?? null;
  }

  function nameOf(chosen) {
    if (reading?.concept === chosen) return reading.name;
    for (const token of reading?.tokens ?? []) {
      const found = token.concepts.find((one) => one.concept === chosen);
      if (found) return found.name;
    }
    return null;
  }

  function conceptLegend(chosen) {
    return [
      el(
        "span",
        { class: "chip" },
        el("b", null, called(chosen, nameOf(chosen))),
        " ",
        el("a", { href: link("concepts", { open: chosen }) }, concept(chosen)),
        button("×", () => choose(null), {
          class: "cross",
          "aria-label": "Shade by surprise again",
          title: "Shade by surprise again (Esc)",
        }),
      ),
      el("span", { class: "scale" }, "−1", el("span", { class: "ramp strength" }), "+1"),
      el("span", { class: "soft" }, "strength: its logit over the token's largest"),
      el("span", { class: "sample used" }, "mixed in"),
      el("span", { class: "sample agreed" }, "the teacher agrees"),
    ];
  }

  /** The token looked at: the one chosen, else the last. */
  function place() {
    const last = reading.tokens.length - 1;
    return Math.min(state.now.at ?? last, last);
  }

  function look() {
    if (reading === null) return;
    const row = panel.contains(document.activeElement) ? document.activeElement.dataset.concept : undefined;
    strip.select(place());
    put(panel, tokenPanel(reading, place(), { choose, chosen: state.now.concept }));
    if (row !== undefined) panel.querySelector(`[data-concept="${CSS.escape(row)}"]`)?.focus();
  }

  const choose = (chosen) => state.set({ concept: chosen }, { step: true });

  state.on(["at"], look);
  state.on(["concept", "model"], () => {
    if (state.now.view !== "read") reading = null;
    else {
      if (reading !== null) {
        paint();
        look();
      }
      ask();
    }
  });
  state.on(["text"], () => {
    if (state.now.view !== "read") reading = null;
    else if (state.now.text !== box.text) ask();
  });

  return {
    node,
    show: () => {
      if (state.now.text === null && app.examples.length) state.set({ text: app.examples[0] });
      else if (reading === null) ask();
    },
    run: ask,
    move: (step) => reading && strip.move(step),
    close: () => state.now.concept !== null && choose(null),
  };
}

function bySurprise(token) {
  if (token.loss === null) return { title: "the first token" };
  return { level: token.loss / MOST_SURPRISE, tone: "loss", title: `surprise ${decimal(token.loss)} nats` };
}

function byConcept(one) {
  if (one === null) return { title: "" };
  const marks = [one.used && "used", one.agreed && "agreed"].filter(Boolean);
  const words = [`strength ${decimal(one.strength)}`, one.used && "mixed in", one.agreed && "the teacher agrees"];
  const title = words.filter(Boolean).join(", ");
  return { level: Math.abs(one.strength), tone: one.strength < 0 ? "against" : "strength", marks, title };
}

function surpriseLegend() {
  return [
    el("span", { class: "scale" }, "0", el("span", { class: "ramp loss" }), `${MOST_SURPRISE}+`),
    el("span", { class: "soft" }, "surprise in nats: how unlikely each token was. Choose a concept to shade by it."),
  ];
}

function words(reading) {
  const losses = reading.tokens.map((token) => token.loss).filter((loss) => loss !== null);
  const surprise = losses.length ? `mean surprise ${decimal(mean(losses))} nats · ` : "";
  return `${reading.tokens.length} tokens · ${surprise}read in ${reading.milliseconds.toFixed(0)} ms`;
}
