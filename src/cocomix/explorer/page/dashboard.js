// One concept on a page: what it is called, where it is predicted and true, and what it does to the next token.

import { bar, effects, histogram, overlap } from "./charts.js";
import { button, el, empty, setVars } from "./dom.js";
import { alone, called, concept, count, decimal, percent, seen } from "./format.js";
import { nameplate } from "./nameplate.js";
import { link } from "./state.js";

/** `onname(about)` after it was renamed; `shade(concept)` and `steer(concept)` go to the other views. */
export function dashboard(answer, { model, onname, shade, steer }) {
  const { concept: id, about, predicted } = answer;
  return el(
    "article",
    { "aria-label": `Concept ${id}` },
    el(
      "header",
      { class: "card dash-head" },
      nameplate(answer, model, onname),
      facts(answer),
      el(
        "div",
        { class: "actions" },
        button("Shade text by it", () => shade(id)),
        button("Steer with it", () => steer(id), { class: "primary" }),
      ),
    ),
    el(
      "div",
      { class: "dash-grid" },
      part("Predicted against true", agreement(answer)),
      part(
        "How strongly",
        predicted.count > 0
          ? strengths(predicted)
          : empty("Never predicted", "It was not among the mixed-in concepts anywhere here."),
      ),
      part("Where the student predicts it", studentPassages(predicted), "wide"),
      part("Where the teacher has it", teacherPassages(about), "wide"),
      part("What it does to the next token", pushes(answer), "wide"),
      part("Tokens that tell it apart", distinguishing(about)),
      part("Most similar concepts", similar(answer)),
    ),
  );
}

function part(title, content, extra = "") {
  return el("section", { class: `card part ${extra}` }, el("h3", null, title), content);
}

function facts({ about, predicted, agreement: agreed, positions, split }) {
  const fact = (name, value, hint) => el("div", { title: hint }, el("dt", null, name), el("dd", null, value));
  return el(
    "dl",
    { class: "facts row" },
    fact("predicted", percent(predicted.share), `share of ${count(positions)} ${split} positions where it is mixed in`),
    fact(
      "true",
      agreed && agreed.positions ? percent(agreed.true / agreed.positions) : "–",
      "share of labelled positions where the teacher has it",
    ),
    fact("name's stability", decimal(about.stability), "do two halves of the text name it alike, 0 to 1"),
    fact("name's coverage", percent(about.coverage), "share of its places at which a token of the name is"),
  );
}

function agreement({ agreement: agreed }) {
  if (!agreed) return empty("Not known", "The run keeps no teacher's labels for this text; label it to compare.");
  return [
    el("p", { class: "soft small-text" }, `${count(agreed.positions)} positions, by the labels ${agreed.truth}`),
    overlap(agreed),
  ];
}

function strengths(predicted) {
  return [
    el("p", { class: "soft small-text" }, `Strength at the ${count(predicted.count)} places where it is mixed in`),
    histogram(predicted.histogram),
  ];
}

function passage(before, token, after, level, value, mark = null) {
  const shaded = el("mark", { class: "token strength" }, seen(token));
  setVars(shaded, { "--level": Math.max(0, Math.min(1, level)).toFixed(3) });
  return el(
    "li",
    null,
    el("span", { class: "value" }, value),
    el(
      "span",
      { class: "passage", title: `${before}${token}${after}` },
      el("span", { class: "before" }, el("span", null, seen(before))),
      shaded,
      el("span", { class: "after" }, seen(after)),
    ),
    mark,
  );
}

function studentPassages({ passages }) {
  if (passages.length === 0) return empty("No passage", "It is never among the mixed-in concepts here.");
  const marks = new Map([
    [true, el("span", { class: "tick yes", title: "the teacher has it there too" }, "✓")],
    [false, el("span", { class: "tick no", title: "the teacher does not have it there" }, "·")],
  ]);
  return [
    el("p", { class: "soft small-text" }, "Strongest first; ✓ the teacher has it there too"),
    el(
      "ol",
      { class: "passages" },
      passages.map((one) =>
        passage(
          one.before,
          one.token,
          one.after,
          one.strength,
          decimal(one.strength),
          marks.get(one.true ?? null)?.cloneNode(true),
        ),
      ),
    ),
  ];
}

function teacherPassages({ passages }) {
  if (passages.length === 0) return empty("No passage", "The teacher's autoencoder never has it active here.");
  const most = Math.max(...passages.map((one) => one.activation));
  return [
    el("p", { class: "soft small-text" }, "Activation of the teacher's autoencoder, strongest first"),
    el(
      "ol",
      { class: "passages" },
      passages.map((one) => passage(one.before, one.token, one.after, one.activation / most, decimal(one.activation))),
    ),
  ];
}

function pushes({ promotes, suppresses, measured }) {
  const block = (title, hint, up, down, unit) =>
    el(
      "div",
      null,
      el("h4", null, title),
      el("p", { class: "soft small-text" }, hint),
      el("div", { class: "two" }, effects(up, unit), effects(down, unit)),
    );
  return el(
    "div",
    { class: "pushes" },
    block(
      "By its weights",
      "its vector through the mixer and the head: centred logits",
      promotes,
      suppresses,
      "logits",
    ),
    measured
      ? block(
          "Measured",
          `log-probability with it less without, mean of its ${count(measured.places)} strongest places, nats`,
          measured.promotes,
          measured.suppresses,
          "nats",
        )
      : el(
          "div",
          null,
          el("h4", null, "Measured"),
          empty("Not measured", "It is predicted nowhere here, so taking it away changes nothing."),
        ),
  );
}

function distinguishing({ tokens, next_tokens: next }) {
  if (tokens.length + next.length === 0) return empty("None", "It occurs too seldom to tell its tokens apart.");
  const most = Math.max(...[...tokens, ...next].map((one) => one.score), 1e-9);
  const list = (title, rows) =>
    rows.length > 0 && [
      el("h4", null, title),
      el(
        "ol",
        { class: "effects" },
        rows
          .slice(0, 8)
          .map((one) =>
            el(
              "li",
              null,
              el("code", null, alone(one.token)),
              bar(one.score, most, "more"),
              el("span", { class: "value" }, decimal(one.score, 3)),
            ),
          ),
      ),
    ];
  return el(
    "div",
    { class: "two" },
    el("div", null, list("It is on", tokens)),
    el("div", null, list("It comes before", next)),
  );
}

function similar({ similar: others }) {
  if (others.length === 0) return empty("None", "No other concept to compare it with.");
  return el(
    "ol",
    { class: "similar" },
    others.map((one) =>
      el(
        "li",
        { title: `cosine ${decimal(one.cosine, 3)}` },
        el("a", { href: link("concepts", { open: one.concept }) }, called(one.concept, one.name)),
        bar(one.cosine, 1, "strength"),
        el("span", { class: "value" }, decimal(one.cosine)),
      ),
    ),
  );
}
