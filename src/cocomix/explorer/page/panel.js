// The panel of one token: which concepts are predicted there, and the most probable next tokens.

import { bar } from "./charts.js";
import { button, el } from "./dom.js";
import { concept, decimal, nameOrNumber, nats, percent, tokenLabel } from "./format.js";
import { link } from "./state.js";

/**
 * The panel of token `at`.
 *
 * `choose(concept)` shades the text by a concept, or by surprise if null; without it concepts cannot be chosen
 * (Compare). `chosen` is the concept that is chosen now; the reading may still be of another one. `below` is a node to
 * end with.
 */
export function tokenPanel(reading, at, { choose = null, chosen = null, heading = null, below = null } = {}) {
  const token = reading.tokens[at];
  return el(
    "div",
    { class: "token-panel" },
    heading && el("h3", { class: "panel-model" }, heading),
    el(
      "div",
      { class: "panel-head" },
      el("code", { class: "panel-token" }, tokenLabel(token.token, token.id)),
      el("span", { class: "soft" }, `token ${at + 1} of ${reading.tokens.length} · id ${token.id}`),
    ),
    surprise(token, reading),
    reading.n_concepts > 0 && concepts(token, reading, choose, chosen),
    nextTokens(token, reading),
    below,
  );
}

function surprise(token, reading) {
  if (token.loss === null)
    return el("p", { class: "soft" }, "The first token is not predicted, because nothing comes before it.");
  const hasChannel = token.channel !== null && token.channel !== undefined;
  const hasWithout = token.loss_without !== null && token.loss_without !== undefined;
  return el(
    "p",
    null,
    el("span", { class: "soft" }, "surprise "),
    el("b", null, `${decimal(token.loss)} nats`),
    el("span", { class: "soft" }, ` (probability ${percent(Math.exp(-token.loss))})`),
    hasWithout && el("span", { class: "soft" }, `; ${decimal(token.loss_without)} without ${concept(reading.concept)}`),
    hasChannel && [
      el("br"),
      el("span", { class: "soft" }, "through the channel "),
      el("b", null, `${nats(token.channel)} nats`),
      el("span", { class: "soft" }, ` (surprise ${decimal(token.loss + token.channel)} with the vector zeroed)`),
    ],
  );
}

function concepts(token, reading, choose, chosen) {
  const rows = token.concepts.map((predicted) => conceptRow(predicted, choose, chosen));
  const ids = new Set(token.concepts.map((predicted) => predicted.concept));
  const chosenIsMissing = token.chosen && !ids.has(token.chosen.concept);
  const names = new Map(
    reading.tokens.flatMap((other) => other.concepts.map((predicted) => [predicted.concept, predicted.name])),
  );
  const missed = (token.labels ?? []).filter((id) => !ids.has(id));
  return el(
    "section",
    null,
    el("h4", null, "Concepts predicted here"),
    el("ul", { class: "concept-rows" }, rows, chosenIsMissing && conceptRow(token.chosen, choose, chosen, "apart")),
    missed.length > 0 &&
      el(
        "p",
        { class: "missed" },
        el("span", { class: "soft" }, "The teacher's labels also have "),
        missed.map((id, index) => [
          index > 0 && ", ",
          el("a", { href: link("concepts", { open: id }) }, nameOrNumber(id, names.get(id))),
        ]),
      ),
  );
}

const AGREED = new Map([
  [true, ["✓", "yes", "the teacher's labels have it here, too"]],
  [false, ["·", "no", "the teacher's labels do not have it here"]],
  [null, ["", "none", "no teacher labels here"]],
]);

function conceptRow(predicted, choose, chosenNow, extra = "") {
  const chosen = predicted.concept === chosenNow;
  const [mark, tone, agreed] = AGREED.get(predicted.agreed ?? null);
  const used = predicted.used ? "mixed in" : "not mixed in";
  const name = nameOrNumber(predicted.concept, predicted.name);
  const words = `${name}, strength ${decimal(predicted.strength)}, ${used}, ${agreed}`;
  const inside = [
    el(
      "span",
      { class: "concept-name", title: predicted.name },
      predicted.name ?? el("span", { class: "soft" }, "no name"),
    ),
    bar(
      Math.abs(predicted.strength),
      1,
      predicted.strength < 0 ? "against" : predicted.used ? "strength" : "strength faint",
    ),
    el("span", { class: "value" }, decimal(predicted.strength)),
    el("span", { class: `tick ${tone}`, title: agreed }, mark),
  ];
  return el(
    "li",
    { class: `${extra} ${chosen ? "chosen" : ""}` },
    choose
      ? button(inside, () => choose(chosen ? null : predicted.concept), {
          class: "concept-row",
          "aria-pressed": String(chosen),
          "aria-label": words,
          "data-concept": predicted.concept,
          title: predicted.used
            ? "mixed in; click to shade the text by this concept"
            : "not mixed in; click to shade the text by this concept",
        })
      : el("div", { class: "concept-row", title: words }, inside),
    el(
      "a",
      { class: "number", href: link("concepts", { open: predicted.concept }), title: "open this concept's page" },
      concept(predicted.concept),
    ),
  );
}

function nextTokens(token, reading) {
  const largest = Math.max(...token.next.flatMap((next) => [next.probability, next.without ?? 0]), 1e-9);
  const paired = token.next.some((next) => next.without !== null && next.without !== undefined);
  return el(
    "section",
    null,
    el("h4", null, "Most probable next tokens"),
    paired &&
      el(
        "p",
        { class: "keys soft" },
        el("span", { class: "key with" }, "unchanged"),
        el("span", { class: "key without" }, `without ${nameOrNumber(reading.concept, reading.name)}`),
      ),
    el(
      "ol",
      { class: `odds ${paired ? "paired" : ""}` },
      token.next.map((next) =>
        el(
          "li",
          null,
          el("code", null, tokenLabel(next.token, next.id)),
          el(
            "span",
            { class: "bars" },
            bar(next.probability, largest, "with"),
            paired && bar(next.without ?? 0, largest, "without"),
          ),
          el(
            "span",
            { class: "value" },
            percent(next.probability),
            paired &&
              el(
                "span",
                { class: "soft" },
                el("span", { class: "unseen" }, ", without the concept "),
                percent(next.without),
              ),
          ),
        ),
      ),
    ),
  );
}
