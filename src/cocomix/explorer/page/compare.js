// Compare: two students on the same text, token by token.

import { post } from "./api.js";
import { announce, button, el, empty, errorBox, setChildren, skeleton } from "./dom.js";
import { decimal, mean, signed } from "./format.js";
import { tokenPanel } from "./panel.js";
import { Strip } from "./strip.js";
import { examples, textBox } from "./textbox.js";
import { debounce, LatestRequest } from "./timing.js";

const TOP = 5;
const SCALES = [0.1, 0.2, 0.5, 1, 2, 5, 10]; // nats of difference at which the shade is full
const MAX_SURPRISE = 8; // nats at which the shade is full, as in Read
const SIDES = ["left", "right"];

export function compareView(app) {
  const { state } = app;
  const requests = new LatestRequest();
  let answer = null;

  const box = textBox({ label: "Text to compare on", placeholder: "Type or paste a text", oninput: setText });
  const pickers = { left: picker("left", "Left model"), right: picker("right", "Right model") };
  const strips = {
    left: new Strip({ label: "Tokens", onselect: (at) => state.set({ at }) }),
    right: new Strip({ label: "Tokens of the right model", onselect: (at) => state.set({ at }) }),
  };
  const totals = el("div", { class: "totals" });
  const board = el("div", { class: "board" });
  const panels = el("div", { class: "two-panels" });
  const requestSoon = debounce(250, request);
  const node = el(
    "div",
    { class: "compare" },
    el(
      "div",
      { class: "card" },
      el(
        "div",
        { class: "versus" },
        pickers.left.node,
        button("⇄", swap, { class: "icon", "aria-label": "Swap the two", title: "Swap the two" }),
        pickers.right.node,
      ),
      box.node,
      examples(app.examples, (text) => state.set({ text, at: null })),
    ),
    totals,
    el("div", { class: "card" }, board),
    panels,
  );

  function picker(side, label) {
    const select = el(
      "select",
      { "aria-label": label, onchange: () => state.set({ [side]: select.value }) },
      app.models.map((model) => el("option", { value: model.key }, model.label)),
    );
    return { node: el("label", { class: `pick ${side}` }, el("span", { class: `key ${side}` }, side), select), select };
  }

  const label = (side) => app.models.find((model) => model.key === state.now[side])?.label ?? side;

  function swap() {
    state.set({ left: state.now.right, right: state.now.left });
  }

  function setText(text) {
    state.set({ text, at: null });
    requestSoon();
  }

  function request() {
    requestSoon.stop();
    const { left, right, text } = state.now;
    box.show(text ?? "");
    for (const side of SIDES) pickers[side].select.value = state.now[side];
    if (!text) {
      requests.stop();
      answer = null;
      setChildren(totals);
      setChildren(panels);
      return setChildren(board, empty("Nothing to compare yet", "Type a text above, or choose one of the examples."));
    }
    if (answer === null) setChildren(board, skeleton(4, "Reading with both models"));
    board.setAttribute("aria-busy", "true");
    requests.run((signal) => post("api/compare", { left, right, text, top: TOP }, signal), show, failed);
  }

  function show(comparison) {
    answer = comparison;
    board.removeAttribute("aria-busy");
    if (answer.same_tokens) showDifferences();
    else showSideBySide();
    setChildren(totals, answer.same_tokens ? totalCards() : bitsCards());
    showSelected();
    announce("compared");
  }

  function failed(error) {
    answer = null;
    board.removeAttribute("aria-busy");
    setChildren(totals);
    setChildren(panels);
    setChildren(board, errorBox(error, request));
  }

  /** One strip, shaded by which model predicts each token better, and by how much. */
  function showDifferences() {
    strips.left.show(answer.left.tokens.map((token) => token.token));
    const full = scale();
    answer.left.tokens.forEach((token, at) => {
      const other = answer.right.tokens[at];
      if (token.loss === null) return strips.left.paint(at, { title: "the first token" });
      const gain = token.loss - other.loss;
      const better = gain > 0 ? "right" : "left";
      strips.left.paint(at, {
        level: Math.abs(gain) / full,
        tone: better,
        title: `left ${decimal(token.loss)}, right ${decimal(other.loss)} nats: ${better} is better`,
      });
    });
    setChildren(
      board,
      strips.left.node,
      el(
        "div",
        { class: "legend" },
        el(
          "span",
          { class: "scale" },
          `left better by ${full}`,
          el("span", { class: "ramp diverging" }),
          `right better by ${full}`,
        ),
        el("span", { class: "soft" }, "difference in surprise at each token, in nats"),
      ),
    );
  }

  /** The difference at which the shade is full: nine tokens in ten are within it. */
  function scale() {
    const gains = answer.left.tokens
      .slice(1)
      .map((token, at) => Math.abs(token.loss - answer.right.tokens[at + 1].loss));
    const large = gains.sort((a, b) => a - b)[Math.floor(gains.length * 0.9)] ?? 0;
    return SCALES.find((candidate) => candidate >= large) ?? SCALES.at(-1);
  }

  /** For different tokenizers: one strip for each model, shaded by surprise. */
  function showSideBySide() {
    for (const side of SIDES) {
      const { tokens } = answer[side];
      strips[side].show(tokens.map((token) => token.token));
      tokens.forEach((token, at) =>
        strips[side].paint(
          at,
          token.loss === null
            ? {}
            : { level: token.loss / MAX_SURPRISE, tone: "loss", title: `surprise ${decimal(token.loss)} nats` },
        ),
      );
    }
    setChildren(
      board,
      el(
        "p",
        { class: "soft" },
        "The two models split the text into different tokens, so each is shown separately, shaded by its surprise.",
      ),
      el(
        "div",
        { class: "columns" },
        SIDES.map((side) => el("section", null, el("h3", { class: `key ${side}` }, label(side)), strips[side].node)),
      ),
    );
  }

  /** Where vocabularies differ, perplexities do not compare; bits per byte do. */
  function bitsCards() {
    return SIDES.map((side) =>
      el(
        "div",
        { class: `card total ${side}` },
        el("h3", { class: `key ${side}` }, label(side)),
        el("div", { class: "big" }, decimal(answer[`${side}_bits_per_byte`], 4), el("span", { class: "soft" }, " bits per byte")),
        el("div", { class: "soft" }, "of the text behind the first token"),
      ),
    );
  }

  function totalCards() {
    const losses = Object.fromEntries(
      SIDES.map((side) => [side, answer[side].tokens.map((token) => token.loss).filter((loss) => loss !== null)]),
    );
    if (losses.left.length === 0) return empty("One token", "The first token is not predicted; type more to compare.");
    const means = { left: mean(losses.left), right: mean(losses.right) };
    const gain = means.left - means.right;
    const won = losses.left.filter((loss, at) => loss > losses.right[at]).length;
    const verdict =
      Math.abs(gain) < 0.005
        ? "Both are equally good on this text"
        : `${gain > 0 ? "Right" : "Left"} is better by ${decimal(Math.abs(gain))} nats a token`;
    return [
      SIDES.map((side) =>
        el(
          "div",
          { class: `card total ${side}` },
          el("h3", { class: `key ${side}` }, label(side)),
          el("div", { class: "big" }, decimal(Math.exp(means[side]), 1), el("span", { class: "soft" }, " perplexity")),
          el("div", { class: "soft" }, `mean surprise ${decimal(means[side], 3)} nats`),
          el("div", { class: "soft" }, `${decimal(answer[`${side}_bits_per_byte`], 4)} bits per byte`),
        ),
      ),
      el(
        "div",
        { class: "card total" },
        el("h3", null, verdict),
        el("div", { class: "big" }, signed(-gain), el("span", { class: "soft" }, " nats, right minus left")),
        el("div", { class: "soft" }, `right is better at ${won} of ${losses.left.length} tokens`),
      ),
    ];
  }

  function showSelected() {
    if (answer === null) return;
    const shown = SIDES.map((side) => {
      const last = answer[side].tokens.length - 1;
      const at = Math.min(state.now.at ?? last, last);
      strips[side].select(at);
      return el(
        "aside",
        { class: `card side ${side}`, "aria-label": `The token in ${label(side)}` },
        tokenPanel(answer[side], at, { heading: label(side) }),
      );
    });
    setChildren(panels, shown);
  }

  state.on(["at"], () => state.now.view === "compare" && showSelected());
  state.on(["left", "right"], () => {
    if (state.now.view === "compare") request();
    else answer = null;
  });
  state.on(["text"], () => {
    if (state.now.view !== "compare") answer = null;
    else if (state.now.text !== box.text) request();
  });

  return {
    node,
    show() {
      if (state.now.text === null && app.examples.length) state.set({ text: app.examples[0] });
      else if (answer === null) request();
    },
    run: request,
    move: (step) => answer && strips.left.move(step),
  };
}
