// The page of one concept: its name, where it is predicted and true, and what it does to the next token.

import { bar, effects, histogram, overlap } from "./charts.js";
import { el, empty, setVars } from "./dom.js";
import { count, decimal, nameOrNumber, percent, tokenLabel, visible } from "./format.js";

/**
 * `name` is the node that shows its name, `actions` are its buttons; `href(concept)` is the address of another one's
 * page, or null if it has none. Nothing here asks the server, so a page of its own can show a dashboard, too.
 */
export function dashboard(answer, { name, actions = [], href }) {
  const { concept: id, about, predicted } = answer;
  return el(
    "article",
    { "aria-label": `Concept ${id}` },
    el(
      "header",
      { class: "card dash-head" },
      name,
      facts(answer),
      actions.length > 0 && el("div", { class: "actions" }, actions),
    ),
    el(
      "div",
      { class: "dash-grid" },
      part("Predicted and true", agreement(answer)),
      part(
        "Strength",
        predicted.count > 0
          ? strengths(predicted)
          : empty("Never predicted", "The concept is not mixed in at any position of this text."),
      ),
      part("Where the student predicts it", studentPassages(predicted), "wide"),
      part("Where it is active in the teacher", teacherPassages(about), "wide"),
      part("Effect on the next token", nextTokenEffects(answer), "wide"),
      part("Distinguishing tokens", distinguishing(about)),
      part("Most similar concepts", similar(answer, href)),
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
      "share of labelled positions where the teacher's labels have it",
    ),
    fact(
      "name's stability",
      decimal(about.stability),
      "how far the names found in two halves of the text agree, 0 to 1",
    ),
    fact("name's coverage", percent(about.coverage), "share of its positions that hold a token of the name"),
  );
}

function agreement({ agreement: agreed }) {
  if (!agreed) return empty("Not known", "The run has no teacher labels for this text.");
  return [
    el("p", { class: "soft small-text" }, `${count(agreed.positions)} positions, by the ${agreed.truth}`),
    overlap(agreed),
  ];
}

function strengths(predicted) {
  return [
    el("p", { class: "soft small-text" }, `Strength at the ${count(predicted.count)} positions where it is mixed in`),
    histogram(predicted.histogram),
  ];
}

function passageRow(before, token, after, level, value, mark = null) {
  const shaded = el("mark", { class: "token strength" }, visible(token));
  setVars(shaded, { "--level": Math.max(0, Math.min(1, level)).toFixed(3) });
  return el(
    "li",
    null,
    el("span", { class: "value" }, value),
    el(
      "span",
      { class: "passage", title: `${before}${token}${after}` },
      el("span", { class: "before" }, el("span", null, visible(before))),
      shaded,
      el("span", { class: "after" }, visible(after)),
    ),
    mark,
  );
}

function studentPassages({ passages }) {
  if (passages.length === 0) return empty("No passage", "The concept is not mixed in at any position of this text.");
  const marks = new Map([
    [true, el("span", { class: "tick yes", title: "the teacher's labels have it here, too" }, "✓")],
    [false, el("span", { class: "tick no", title: "the teacher's labels do not have it here" }, "·")],
  ]);
  return [
    el("p", { class: "soft small-text" }, "Strongest first; ✓ the teacher's labels have it here, too"),
    el(
      "ol",
      { class: "passages" },
      passages.map(({ before, token, after, strength, true: labelled }) =>
        passageRow(before, token, after, strength, decimal(strength), marks.get(labelled ?? null)?.cloneNode(true)),
      ),
    ),
  ];
}

function teacherPassages({ passages }) {
  if (passages.length === 0)
    return empty("No passage", "The concept is not active in the teacher's SAE at any position of this text.");
  const largest = Math.max(...passages.map((passage) => passage.activation));
  return [
    el("p", { class: "soft small-text" }, "Activation in the teacher's SAE, strongest first"),
    el(
      "ol",
      { class: "passages" },
      passages.map(({ before, token, after, activation }) =>
        passageRow(before, token, after, activation / largest, decimal(activation)),
      ),
    ),
  ];
}

function nextTokenEffects({ promotes, suppresses, measured }) {
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
    { class: "next-token-effects" },
    block(
      "By its weights",
      "the concept's vector through the mixer and the LM head: centred logits",
      promotes,
      suppresses,
      "logits",
    ),
    measured
      ? block(
          "Measured",
          `log-probability with minus without it, mean over its ${count(measured.places)} strongest positions, nats`,
          measured.promotes,
          measured.suppresses,
          "nats",
        )
      : el(
          "div",
          null,
          el("h4", null, "Measured"),
          empty("Not measured", "The concept is not predicted in this text, so removing it changes nothing."),
        ),
  );
}

function distinguishing({ tokens, next_tokens: next }) {
  if (tokens.length + next.length === 0)
    return empty("None", "The concept is too rare to find tokens that distinguish it.");
  const largest = Math.max(...[...tokens, ...next].map((row) => row.score), 1e-9);
  const list = (title, rows) =>
    rows.length > 0 && [
      el("h4", null, title),
      el(
        "ol",
        { class: "effects" },
        rows
          .slice(0, 8)
          .map((row) =>
            el(
              "li",
              null,
              el("code", null, tokenLabel(row.token)),
              bar(row.score, largest, "more"),
              el("span", { class: "value" }, decimal(row.score, 3)),
            ),
          ),
      ),
    ];
  return el(
    "div",
    { class: "two" },
    el("div", null, list("Tokens it is active on", tokens)),
    el("div", null, list("Tokens that follow it", next)),
  );
}

function similar({ similar: others }, href) {
  if (others.length === 0) return empty("None", "No other concept to compare it with.");
  return el(
    "ol",
    { class: "similar" },
    others.map((other) =>
      el(
        "li",
        { title: `cosine ${decimal(other.cosine, 3)}` },
        similarName(other, href(other.concept)),
        bar(other.cosine, 1, "strength"),
        el("span", { class: "value" }, decimal(other.cosine)),
      ),
    ),
  );
}

function similarName({ concept: id, name }, address) {
  const text = nameOrNumber(id, name);
  return address === null ? el("span", { class: "concept-name" }, text) : el("a", { href: address }, text);
}
