// Read: what the student predicts at each token of a text, updated while the user types.

import { post } from "./api.js";
import { ChannelSection } from "./channel.js";
import { announce, button, el, empty, errorBox, noConcepts, setChildren, skeleton } from "./dom.js";
import { concept, decimal, mean, nameOrNumber, nats } from "./format.js";
import { tokenPanel } from "./panel.js";
import { Strip } from "./strip.js";
import { link } from "./state.js";
import { examples, textBox } from "./textbox.js";
import { debounce, LatestRequest } from "./timing.js";

const TOP = 8;
const MAX_SURPRISE = 8; // nats at which the shade is full; a probability of 1 in 3000
const MAX_CHANNEL = 1; // the same for what comes through the channel, either way

export function readView(app) {
  const { state } = app;
  const requests = new LatestRequest();
  const channel = new ChannelSection();
  let reading = null;
  let byChannel = false;

  const box = textBox({ label: "Text to read", placeholder: "Type or paste a text", oninput: setText });
  const strip = new Strip({ label: "The text's tokens", onselect: (at) => state.set({ at }) });
  const legend = el("div", { class: "legend" });
  const summary = el("p", { class: "soft summary" });
  const board = el("div", { class: "board" });
  const panel = el("aside", { class: "card side", "aria-label": "The selected token" });
  const requestSoon = debounce(250, request);
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

  function setText(text) {
    state.set({ text, at: null });
    requestSoon();
  }

  function request() {
    requestSoon.stop();
    box.show(state.now.text ?? "");
    const { model, text, concept: chosen } = state.now;
    if (!app.withConcepts.length) return showNoConcepts();
    if (!text) return showNoText();
    if (reading === null) setChildren(board, skeleton(4, "Reading"));
    board.setAttribute("aria-busy", "true");
    requests.run(
      (signal) => post("api/read", { model, text, concept: chosen, top: TOP }, signal),
      (answer) => show({ ...answer, text }),
      failed,
    );
  }

  function show(answer) {
    reading = answer;
    board.removeAttribute("aria-busy");
    strip.show(answer.tokens.map((token) => token.token));
    setChildren(board, strip.node, legend, summary);
    paint();
    showSelected();
    summary.textContent = summarize(answer);
    announce(`${answer.tokens.length} tokens read`);
  }

  function failed(error) {
    reading = null;
    board.removeAttribute("aria-busy");
    setChildren(board, errorBox(error, request));
    setChildren(panel);
  }

  function showNoText() {
    requests.stop();
    reading = null;
    setChildren(board, empty("Nothing to read yet", "Type a text above, or choose one of the examples."));
    setChildren(panel, empty("No token", "A token's concepts and next-token probabilities will be shown here."));
  }

  function showNoConcepts() {
    setChildren(board, noConcepts());
    setChildren(panel);
  }

  /** Shades every token by surprise or by the chosen concept, as far as the present reading knows it. */
  function paint() {
    const chosen = state.now.concept;
    reading.tokens.forEach((token, at) => {
      const shade = chosen !== null ? byConcept(predictedOf(token, chosen)) : byNats(token);
      strip.paint(at, shade);
    });
    setChildren(legend, chosen === null ? natsLegend() : conceptLegend(chosen));
  }

  const byNats = (token) => (byChannel ? throughChannel(token) : bySurprise(token));

  function natsLegend() {
    if (!reading.tokens.some((token) => hasChannel(token))) return surpriseLegend();
    const shadeBy = (next, label) =>
      button(
        label,
        () => {
          byChannel = next;
          paint();
          legend.querySelector("button[aria-pressed=true]").focus();
        },
        { class: "small", "aria-pressed": String(byChannel === next) },
      );
    const choices = [shadeBy(false, "surprise"), shadeBy(true, "the channel")];
    return [...(byChannel ? channelLegend() : surpriseLegend()), el("span", { class: "soft" }, "Shade by"), ...choices];
  }

  function predictedOf(token, chosen) {
    if (token.chosen?.concept === chosen) return token.chosen;
    return token.concepts.find((candidate) => candidate.concept === chosen) ?? null;
  }

  function nameOf(chosen) {
    if (reading?.concept === chosen) return reading.name;
    for (const token of reading?.tokens ?? []) {
      const match = token.concepts.find((candidate) => candidate.concept === chosen);
      if (match) return match.name;
    }
    return null;
  }

  function conceptLegend(chosen) {
    return [
      el(
        "span",
        { class: "chip" },
        el("b", null, nameOrNumber(chosen, nameOf(chosen))),
        " ",
        el("a", { href: link("concepts", { open: chosen }) }, concept(chosen)),
        button("×", () => choose(null), {
          class: "cross",
          "aria-label": "Shade by surprise again",
          title: "Shade by surprise again (Esc)",
        }),
      ),
      el("span", { class: "scale" }, "−1", el("span", { class: "ramp strength" }), "+1"),
      el("span", { class: "soft" }, "strength: the concept's logit / the token's largest logit"),
      el("span", { class: "sample used" }, "mixed in"),
      el("span", { class: "sample agreed" }, "the teacher agrees"),
    ];
  }

  /** Index of the selected token; the last one if none was selected. */
  function selected() {
    const last = reading.tokens.length - 1;
    return Math.min(state.now.at ?? last, last);
  }

  function showSelected() {
    if (reading === null) return;
    const focused = panel.contains(document.activeElement) ? document.activeElement.dataset.concept : undefined;
    strip.select(selected());
    const at = selected();
    channel.show(reading.model, reading.text, at, reading.tokens[at]); // the text may have been edited since
    setChildren(panel, tokenPanel(reading, at, { choose, chosen: state.now.concept, below: channel.node }));
    if (focused !== undefined) panel.querySelector(`[data-concept="${CSS.escape(focused)}"]`)?.focus();
  }

  const choose = (chosen) => state.set({ concept: chosen }, { step: true });

  state.on(["at"], showSelected);
  state.on(["concept", "model"], () => {
    if (state.now.view !== "read") reading = null;
    else {
      if (reading !== null) {
        paint();
        showSelected();
      }
      request();
    }
  });
  state.on(["text"], () => {
    if (state.now.view !== "read") reading = null;
    else if (state.now.text !== box.text) request();
  });

  return {
    node,
    show: () => {
      if (state.now.text === null && app.examples.length) state.set({ text: app.examples[0] });
      else if (reading === null) request();
    },
    run: request,
    move: (step) => reading && strip.move(step),
    close: () => state.now.concept !== null && choose(null),
  };
}

function bySurprise(token) {
  if (token.loss === null) return { title: "the first token" };
  return { level: token.loss / MAX_SURPRISE, tone: "loss", title: `surprise ${decimal(token.loss)} nats` };
}

const hasChannel = (token) => token.channel !== null && token.channel !== undefined;

function throughChannel(token) {
  if (!hasChannel(token)) return { title: "the first token" };
  const tone = token.channel < 0 ? "left" : "right";
  return { level: Math.abs(token.channel) / MAX_CHANNEL, tone, title: `${nats(token.channel)} nats through the channel` };
}

function byConcept(predicted) {
  if (predicted === null) return { title: "" };
  const marks = [predicted.used && "used", predicted.agreed && "agreed"].filter(Boolean);
  const words = [
    `strength ${decimal(predicted.strength)}`,
    predicted.used && "mixed in",
    predicted.agreed && "the teacher agrees",
  ];
  const title = words.filter(Boolean).join(", ");
  return { level: Math.abs(predicted.strength), tone: predicted.strength < 0 ? "against" : "strength", marks, title };
}

function surpriseLegend() {
  return [
    el("span", { class: "scale" }, "0", el("span", { class: "ramp loss" }), `${MAX_SURPRISE}+`),
    el(
      "span",
      { class: "soft" },
      "surprise in nats: how improbable each token was. Choose a concept to shade the text by it.",
    ),
  ];
}

function channelLegend() {
  return [
    el("span", { class: "scale" }, `−${MAX_CHANNEL}`, el("span", { class: "ramp diverging" }), `+${MAX_CHANNEL}`),
    el("span", { class: "soft" }, "nats of each token that come through the channel: lost with the vector zeroed."),
  ];
}

function summarize(reading) {
  const losses = reading.tokens.map((token) => token.loss).filter((loss) => loss !== null);
  const through = reading.tokens.filter(hasChannel).map((token) => token.channel);
  const channel = through.length ? `, ${nats(mean(through))} through the channel` : "";
  const surprise = losses.length ? `mean surprise ${decimal(mean(losses))} nats${channel} · ` : "";
  return `${reading.tokens.length} tokens · ${surprise}read in ${reading.milliseconds.toFixed(0)} ms`;
}
