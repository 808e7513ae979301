// One token of a reading: what was predicted there, and what may come next.

import { bar } from "./charts.js";
import { button, el } from "./dom.js";
import { alone, called, concept, decimal, percent } from "./format.js";
import { link } from "./state.js";

/**
 * The panel of token `at`.
 *
 * `choose(concept)` shades the text by one, null by none; without it the concepts cannot be chosen (Compare). `chosen`
 * is the one chosen now, which the reading may not know yet.
 */
export function tokenPanel(reading, at, { choose = null, chosen = null, heading = null } = {}) {
  const token = reading.tokens[at];
  return el(
    "div",
    { class: "token-panel" },
    heading && el("h3", { class: "panel-model" }, heading),
    el(
      "div",
      { class: "panel-head" },
      el("code", { class: "panel-token" }, alone(token.token, token.id)),
      el("span", { class: "soft" }, `token ${at + 1} of ${reading.tokens.length} · id ${token.id}`),
    ),
    surprise(token, reading),
    reading.n_concepts > 0 && concepts(token, reading, choose, chosen),
    nextTokens(token, reading),
  );
}

function surprise(token, reading) {
  if (token.loss === null)
    return el("p", { class: "soft" }, "The first token: nothing came before it to predict it from.");
  const odds = `${decimal(token.loss)} nats`;
  const without = token.loss_without !== null && token.loss_without !== undefined;
  return el(
    "p",
    null,
    el("span", { class: "soft" }, "surprise "),
    el("b", null, odds),
    el("span", { class: "soft" }, ` (it had ${percent(Math.exp(-token.loss))})`),
    without && el("span", { class: "soft" }, `; ${decimal(token.loss_without)} without ${concept(reading.concept)}`),
  );
}

function concepts(token, reading, choose, chosen) {
  const rows = token.concepts.map((one) => conceptRow(one, choose, chosen));
  const apart = token.chosen && !token.concepts.some((one) => one.concept === token.chosen.concept);
  const names = new Map(reading.tokens.flatMap((other) => other.concepts.map((one) => [one.concept, one.name])));
  const there = new Set(token.concepts.map((one) => one.concept));
  const missed = (token.labels ?? []).filter((one) => !there.has(one));
  return el(
    "section",
    null,
    el("h4", null, "Concepts predicted here"),
    el("ul", { class: "concept-rows" }, rows, apart && conceptRow(token.chosen, choose, chosen, "apart")),
    missed.length > 0 &&
      el(
        "p",
        { class: "missed" },
        el("span", { class: "soft" }, "The teacher also has "),
        missed.map((one, at) => [
          at > 0 && ", ",
          el("a", { href: link("concepts", { open: one }) }, called(one, names.get(one))),
        ]),
      ),
  );
}

const AGREED = new Map([
  [true, ["✓", "yes", "the teacher's attribution has it here too"]],
  [false, ["·", "no", "the teacher's attribution does not have it here"]],
  [null, ["", "none", "no teacher labels here"]],
]);

function conceptRow(one, choose, chosenNow, extra = "") {
  const chosen = one.concept === chosenNow;
  const [mark, tone, agreed] = AGREED.get(one.agreed ?? null);
  const used = one.used ? "mixed in" : "not mixed in";
  const words = `${called(one.concept, one.name)}, strength ${decimal(one.strength)}, ${used}, ${agreed}`;
  const inside = [
    el("span", { class: "concept-name", title: one.name }, one.name ?? el("span", { class: "soft" }, "no name")),
    bar(Math.abs(one.strength), 1, one.strength < 0 ? "against" : one.used ? "strength" : "strength faint"),
    el("span", { class: "value" }, decimal(one.strength)),
    el("span", { class: `tick ${tone}`, title: agreed }, mark),
  ];
  return el(
    "li",
    { class: `${extra} ${chosen ? "chosen" : ""}` },
    choose
      ? button(inside, () => choose(chosen ? null : one.concept), {
          class: "concept-row",
          "aria-pressed": String(chosen),
          "aria-label": words,
          "data-concept": one.concept,
          title: one.used
            ? "mixed in; click to shade the text by it"
            : "not among the mixed in; click to shade the text by it",
        })
      : el("div", { class: "concept-row", title: words }, inside),
    el(
      "a",
      { class: "number", href: link("concepts", { open: one.concept }), title: "open its dashboard" },
      concept(one.concept),
    ),
  );
}

function nextTokens(token, reading) {
  const most = Math.max(...token.next.flatMap((one) => [one.probability, one.without ?? 0]), 1e-9);
  const paired = token.next.some((one) => one.without !== null && one.without !== undefined);
  return el(
    "section",
    null,
    el("h4", null, "What may come next"),
    paired &&
      el(
        "p",
        { class: "keys soft" },
        el("span", { class: "key with" }, "as it is"),
        el("span", { class: "key without" }, `without ${called(reading.concept, reading.name)}`),
      ),
    el(
      "ol",
      { class: `odds ${paired ? "paired" : ""}` },
      token.next.map((one) =>
        el(
          "li",
          null,
          el("code", null, alone(one.token, one.id)),
          el(
            "span",
            { class: "bars" },
            bar(one.probability, most, "with"),
            paired && bar(one.without ?? 0, most, "without"),
          ),
          el(
            "span",
            { class: "value" },
            percent(one.probability),
            paired &&
              el("span", { class: "soft" }, el("span", { class: "unseen" }, ", without it "), percent(one.without)),
          ),
        ),
      ),
    ),
  );
}
