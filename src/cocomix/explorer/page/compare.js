// Compare: the same text in two students, token by token.

import { post } from "./api.js";
import { announce, button, el, empty, put, skeleton, trouble } from "./dom.js";
import { decimal, mean, signed } from "./format.js";
import { tokenPanel } from "./panel.js";
import { Strip } from "./strip.js";
import { examples, textBox } from "./textbox.js";
import { Latest, later } from "./timing.js";

const TOP = 5;
const SCALES = [0.1, 0.2, 0.5, 1, 2, 5, 10]; // nats of difference at which the shade is full: the first that few exceed
const MOST_SURPRISE = 8; // as in Read
const SIDES = ["left", "right"];

export function compareView(app) {
  const { state } = app;
  const asking = new Latest();
  let answer = null;

  const box = textBox({ label: "Text to compare on", placeholder: "Type or paste a text", oninput: typed });
  const pickers = { left: picker("left", "Left model"), right: picker("right", "Right model") };
  const strips = {
    left: new Strip({ label: "Tokens", onselect: (at) => state.set({ at }) }),
    right: new Strip({ label: "Tokens of the right model", onselect: (at) => state.set({ at }) }),
  };
  const totals = el("div", { class: "totals" });
  const board = el("div", { class: "board" });
  const panels = el("div", { class: "two-panels" });
  const again = later(250, ask);
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
        button("⇄", swap, { class: "icon", "aria-label": "Swap the two", title: "Swap" }),
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

  function typed(text) {
    state.set({ text, at: null });
    again();
  }

  function ask() {
    again.stop();
    const { left, right, text } = state.now;
    box.show(text ?? "");
    for (const side of SIDES) pickers[side].select.value = state.now[side];
    if (!text) {
      asking.stop();
      answer = null;
      put(totals);
      put(panels);
      return put(board, empty("Nothing to compare on yet", "Type a text above, or take one of the examples."));
    }
    if (answer === null) put(board, skeleton(4, "Reading with both"));
    board.setAttribute("aria-busy", "true");
    asking.run((signal) => post("/api/compare", { left, right, text, top: TOP }, signal), show, failed);
  }

  function show(found) {
    answer = found;
    board.removeAttribute("aria-busy");
    if (found.same_tokens) together();
    else apart();
    put(totals, found.same_tokens ? sums() : []);
    look();
    announce("compared");
  }

  function failed(error) {
    answer = null;
    board.removeAttribute("aria-busy");
    put(totals);
    put(panels);
    put(board, trouble(error, ask));
  }

  /** One strip, shaded by how much better either predicts each token. */
  function together() {
    strips.left.show(answer.left.tokens.map((token) => token.token));
    const most = scale();
    answer.left.tokens.forEach((token, at) => {
      const other = answer.right.tokens[at];
      if (token.loss === null) return strips.left.paint(at, { title: "the first token" });
      const gain = token.loss - other.loss;
      const better = gain > 0 ? "right" : "left";
      strips.left.paint(at, {
        level: Math.abs(gain) / most,
        tone: better,
        title: `left ${decimal(token.loss)}, right ${decimal(other.loss)} nats: ${better} is better`,
      });
    });
    put(
      board,
      strips.left.node,
      el(
        "div",
        { class: "legend" },
        el(
          "span",
          { class: "scale" },
          `left better by ${most}`,
          el("span", { class: "ramp diverging" }),
          `right better by ${most}`,
        ),
        el("span", { class: "soft" }, "difference in surprise at each token, nats"),
      ),
    );
  }

  /** The shade's scale on this text: nine tokens in ten are within it. */
  function scale() {
    const gains = answer.left.tokens
      .slice(1)
      .map((token, at) => Math.abs(token.loss - answer.right.tokens[at + 1].loss));
    const large = gains.sort((one, other) => one - other)[Math.floor(gains.length * 0.9)] ?? 0;
    return SCALES.find((one) => one >= large) ?? SCALES.at(-1);
  }

  /** Tokens differ: each text on its own, by its own surprise. */
  function apart() {
    for (const side of SIDES) {
      const { tokens } = answer[side];
      strips[side].show(tokens.map((token) => token.token));
      tokens.forEach((token, at) =>
        strips[side].paint(
          at,
          token.loss === null
            ? {}
            : { level: token.loss / MOST_SURPRISE, tone: "loss", title: `surprise ${decimal(token.loss)} nats` },
        ),
      );
    }
    put(
      board,
      el(
        "p",
        { class: "soft" },
        "The two cut the text into different tokens, so each is shown apart, shaded by its own surprise.",
      ),
      el(
        "div",
        { class: "columns" },
        SIDES.map((side) => el("section", null, el("h3", { class: `key ${side}` }, label(side)), strips[side].node)),
      ),
    );
  }

  function sums() {
    const losses = Object.fromEntries(
      SIDES.map((side) => [side, answer[side].tokens.map((one) => one.loss).filter((one) => one !== null)]),
    );
    if (losses.left.length === 0)
      return empty("One token", "The first token is predicted from nothing; type more to compare.");
    const means = { left: mean(losses.left), right: mean(losses.right) };
    const gain = means.left - means.right;
    const won = losses.left.filter((one, at) => one > losses.right[at]).length;
    const verdict =
      Math.abs(gain) < 0.005
        ? "The two are alike on this text"
        : `${gain > 0 ? "Right" : "Left"} is better by ${decimal(Math.abs(gain))} nats a token`;
    return [
      SIDES.map((side) =>
        el(
          "div",
          { class: `card total ${side}` },
          el("h3", { class: `key ${side}` }, label(side)),
          el("div", { class: "big" }, decimal(Math.exp(means[side]), 1), el("span", { class: "soft" }, " perplexity")),
          el("div", { class: "soft" }, `mean surprise ${decimal(means[side], 3)} nats`),
        ),
      ),
      el(
        "div",
        { class: "card total" },
        el("h3", null, verdict),
        el("div", { class: "big" }, signed(-gain), el("span", { class: "soft" }, " nats, right less left")),
        el("div", { class: "soft" }, `right is better at ${won} of ${losses.left.length} tokens`),
      ),
    ];
  }

  function look() {
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
    put(panels, shown);
  }

  state.on(["at"], () => state.now.view === "compare" && look());
  state.on(["left", "right"], () => {
    if (state.now.view === "compare") ask();
    else answer = null;
  });
  state.on(["text"], () => {
    if (state.now.view !== "compare") answer = null;
    else if (state.now.text !== box.text) ask();
  });

  return {
    node,
    show() {
      if (state.now.text === null && app.examples.length) state.set({ text: app.examples[0] });
      else if (answer === null) ask();
    },
    run: ask,
    move: (step) => answer && strips.left.move(step),
  };
}
