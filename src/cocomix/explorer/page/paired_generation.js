// Base and steered continuation side by side, as their tokens arrive.

import { pair } from "./charts.js";
import { el, empty, setChildren } from "./dom.js";
import { concept, decimal, mean, nameOrNumber, percent } from "./format.js";
import { Strip } from "./strip.js";

const SIDES = ["base", "steered"];
const TITLES = { base: "Base", steered: "Steered" };

/** Shows the events of one stream after another; `name(concept)` is a concept's name or null. */
export class PairedGeneration {
  #progress = null; // sums over the tokens so far

  constructor({ name }) {
    this.name = name;
    this.strips = Object.fromEntries(SIDES.map((side) => [side, new Strip({ label: `${TITLES[side]} continuation` })]));
    this.meters = el("div", { class: "meters" });
    this.note = el("p", { class: "soft" });
    this.node = el(
      "div",
      { class: "paired-generation" },
      el(
        "div",
        { class: "columns" },
        SIDES.map((side) =>
          el("section", { class: `card column ${side}` }, el("h3", null, TITLES[side]), this.strips[side].node),
        ),
      ),
      el(
        "div",
        { class: "legend" },
        el("span", { class: "sample first" }, "first difference"),
        el("span", { class: "sample differs" }, "differs from the other text"),
        el("span", { class: "sample present" }, "the teacher has a steered concept here"),
        this.note,
      ),
      this.meters,
    );
    this.reset();
  }

  /** Shows what will be here after the first run. */
  reset() {
    this.#progress = null;
    for (const side of SIDES)
      setChildren(
        this.strips[side].node,
        empty(
          "Nothing yet",
          side === "base"
            ? "Press Run: the model continues the prompt."
            : "The same continuation, with the interventions above.",
        ),
      );
  }

  /** A stream of so many tokens was requested. */
  begin(requestedTokens) {
    this.requestedTokens = requestedTokens;
    setChildren(this.note, "Starting…");
  }

  /** Shows one event. */
  handle(event) {
    const handlers = { start: () => this.#start(event), token: () => this.#token(event), end: () => this.#end(event) };
    handlers[event.event]?.();
  }

  #start({ prompt, judge, concepts }) {
    this.#progress = {
      judge,
      concepts,
      firstDifference: null,
      losses: { base: [], steered: [] },
      present: { base: {}, steered: {} },
      tokens: 0,
    };
    setChildren(this.note);
    setChildren(this.meters);
    for (const side of SIDES) {
      const strip = this.strips[side];
      strip.clear();
      strip.node.setAttribute("aria-busy", "true");
      for (const { token } of prompt) strip.paint(strip.add(token), { marks: ["prompt"] });
    }
  }

  #token({ index, base, steered, same }) {
    const progress = this.#progress;
    progress.tokens += 1;
    if (!same && progress.firstDifference === null) progress.firstDifference = index;
    for (const [side, token] of [
      ["base", base],
      ["steered", steered],
    ]) {
      const hasLoss = token.loss !== null && token.loss !== undefined;
      if (hasLoss) progress.losses[side].push(token.loss);
      const activations = Object.entries(token.concepts ?? {});
      for (const [id, value] of activations)
        progress.present[side][id] = (progress.present[side][id] ?? 0) + (value > 0 ? 1 : 0);
      const active = activations.filter(([, value]) => value > 0);
      const marks = [
        !same && "differs",
        progress.firstDifference === index && "first",
        active.length > 0 && "present",
      ].filter(Boolean);
      const title = [
        hasLoss && `surprise ${decimal(token.loss)} nats`,
        ...active.map(([id, value]) => `${nameOrNumber(id, this.name(Number(id)))} active, ${decimal(value)}`),
        !same && "differs from the other text",
      ].filter(Boolean);
      const strip = this.strips[side];
      strip.paint(strip.add(token.token), { marks, title: title.join(", ") });
    }
    this.#showMeters(this.#summaries());
  }

  /** The same figures as in the last event, without distinct pairs. */
  #summaries() {
    const { losses, present, tokens } = this.#progress;
    const summary = (side) => ({
      perplexity: losses[side].length ? Math.exp(mean(losses[side])) : null,
      presence: Object.fromEntries(Object.entries(present[side]).map(([id, times]) => [id, times / tokens])),
    });
    return { base: summary("base"), steered: summary("steered") };
  }

  #end({ base, steered, milliseconds, tokens }) {
    this.finish();
    this.#showMeters({ base, steered });
    const { firstDifference } = this.#progress;
    const difference =
      firstDifference === null ? "no token differs" : `first difference at token ${firstDifference + 1}`;
    const full = tokens < this.requestedTokens ? " (the model has no more positions)" : "";
    setChildren(
      this.note,
      `${tokens} tokens${full} in ${(milliseconds / 1000).toFixed(1)} s, the same noise for both; ${difference}.`,
    );
  }

  /** No more tokens will arrive: the stream ended, was stopped or failed. */
  finish(note = null) {
    for (const side of SIDES) this.strips[side].node.removeAttribute("aria-busy");
    if (note !== null) setChildren(this.note, note);
  }

  #showMeters({ base, steered }) {
    const { judge, concepts } = this.#progress;
    const largest = Math.max(base.perplexity ?? 0, steered.perplexity ?? 0, 1);
    setChildren(
      this.meters,
      pair(
        "Fluency: perplexity",
        `under ${judge === "teacher" ? "the teacher" : judge}; lower is more fluent`,
        base.perplexity,
        steered.perplexity,
        largest,
        (value) => decimal(value, value < 100 ? 1 : 0),
      ),
      (base.bits_per_byte ?? null) !== null &&
        (steered.bits_per_byte ?? null) !== null &&
        pair(
          "Fluency: bits per byte",
          "the same loss over the bytes of the text",
          base.bits_per_byte,
          steered.bits_per_byte,
          Math.max(base.bits_per_byte, steered.bits_per_byte),
          (value) => decimal(value, 3),
        ),
      concepts.map((id) =>
        pair(
          [
            "Presence: ",
            nameOrNumber(id, this.name(id)),
            " ",
            this.name(id) && el("span", { class: "number" }, concept(id)),
          ],
          "share of new tokens where the concept is active in the teacher's SAE",
          base.presence?.[id],
          steered.presence?.[id],
          1,
          percent,
        ),
      ),
      base.distinct !== undefined &&
        pair(
          "Variety: distinct pairs",
          "different pairs of neighbouring tokens / all pairs",
          base.distinct,
          steered.distinct,
          1,
          percent,
        ),
    );
  }
}
