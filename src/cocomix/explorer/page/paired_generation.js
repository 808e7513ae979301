// Base and steered continuation side by side, as their tokens come in.

import { pair } from "./charts.js";
import { el, empty, put } from "./dom.js";
import { called, concept, decimal, mean, percent } from "./format.js";
import { Strip } from "./strip.js";

const SIDES = ["base", "steered"];
const TITLES = { base: "Base", steered: "Steered" };

/** Shows the events of one run after another; `name(concept)` is a concept's name or null. */
export class Duet {
  #heard = null; // what came in so far

  constructor({ name }) {
    this.name = name;
    this.strips = Object.fromEntries(SIDES.map((side) => [side, new Strip({ label: `${TITLES[side]} continuation` })]));
    this.meters = el("div", { class: "meters" });
    this.note = el("p", { class: "soft" });
    this.node = el(
      "div",
      { class: "duet" },
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
        el("span", { class: "sample first" }, "where they part"),
        el("span", { class: "sample differs" }, "differs from the other"),
        el("span", { class: "sample present" }, "a steered concept is there, by the teacher"),
        this.note,
      ),
      this.meters,
    );
    this.rest();
  }

  /** As before the first run. */
  rest() {
    this.#heard = null;
    for (const side of SIDES)
      put(
        this.strips[side].node,
        empty(
          "Nothing yet",
          side === "base" ? "Press Run: the model continues the prompt." : "The same, with the dials turned.",
        ),
      );
  }

  /** A run of so many tokens was asked for. */
  begin(asked) {
    this.asked = asked;
    put(this.note, "Starting…");
  }

  /** Takes in one event. */
  hear(event) {
    const takes = { start: () => this.#start(event), token: () => this.#token(event), end: () => this.#end(event) };
    takes[event.event]?.();
  }

  #start({ prompt, judge, concepts }) {
    this.#heard = {
      judge,
      concepts,
      first: null,
      losses: { base: [], steered: [] },
      present: { base: {}, steered: {} },
      n: 0,
    };
    put(this.note);
    put(this.meters);
    for (const side of SIDES) {
      const strip = this.strips[side];
      strip.clear();
      strip.node.setAttribute("aria-busy", "true");
      for (const { token } of prompt) strip.paint(strip.add(token), { marks: ["prompt"] });
    }
  }

  #token({ index, base, steered, same }) {
    const heard = this.#heard;
    heard.n += 1;
    if (!same && heard.first === null) heard.first = index;
    for (const [side, token] of [
      ["base", base],
      ["steered", steered],
    ]) {
      if (token.loss !== null && token.loss !== undefined) heard.losses[side].push(token.loss);
      const strengths = Object.entries(token.concepts ?? {});
      for (const [id, value] of strengths)
        heard.present[side][id] = (heard.present[side][id] ?? 0) + (value > 0 ? 1 : 0);
      const active = strengths.filter(([, value]) => value > 0);
      const marks = [!same && "differs", heard.first === index && "first", active.length > 0 && "present"].filter(Boolean);
      const words = [
        token.loss !== null && token.loss !== undefined && `surprise ${decimal(token.loss)} nats`,
        ...active.map(([id, value]) => `${called(id, this.name(Number(id)))} active, ${decimal(value)}`),
        !same && "differs from the other",
      ].filter(Boolean);
      const strip = this.strips[side];
      strip.paint(strip.add(token.token), { marks, title: words.join(", ") });
    }
    this.#measure(this.#running());
  }

  #running() {
    const { losses, present, n } = this.#heard;
    const side = (which) => ({
      perplexity: losses[which].length ? Math.exp(mean(losses[which])) : null,
      presence: Object.fromEntries(Object.entries(present[which]).map(([id, times]) => [id, times / n])),
    });
    return { base: side("base"), steered: side("steered") };
  }

  #end({ base, steered, milliseconds, tokens }) {
    this.still();
    this.#measure({ base, steered });
    const { first } = this.#heard;
    const apart = first === null ? "never part" : `part at token ${first + 1}`;
    const room = tokens < this.asked ? ", all that the model has room for," : "";
    put(
      this.note,
      `${tokens} tokens${room} in ${(milliseconds / 1000).toFixed(1)} s, the same noise for both; the two ${apart}.`,
    );
  }

  /** No more tokens come: it ended, was stopped or broke. */
  still(note = null) {
    for (const side of SIDES) this.strips[side].node.removeAttribute("aria-busy");
    if (note !== null) put(this.note, note);
  }

  #measure({ base, steered }) {
    const { judge, concepts } = this.#heard;
    const most = Math.max(base.perplexity ?? 0, steered.perplexity ?? 0, 1);
    put(
      this.meters,
      pair(
        "Fluency: perplexity",
        `as ${judge === "teacher" ? "the teacher" : judge} reads it; lower is more fluent`,
        base.perplexity,
        steered.perplexity,
        most,
        (value) => decimal(value, value < 100 ? 1 : 0),
      ),
      concepts.map((id) =>
        pair(
          ["Presence: ", called(id, this.name(id)), " ", this.name(id) && el("span", { class: "number" }, concept(id))],
          "share of new tokens at which the teacher's autoencoder has it",
          base.presence?.[id],
          steered.presence?.[id],
          1,
          percent,
        ),
      ),
      base.distinct !== undefined &&
        pair(
          "Variety: distinct pairs",
          "different pairs of neighbouring tokens over all pairs",
          base.distinct,
          steered.distinct,
          1,
          percent,
        ),
    );
  }
}
