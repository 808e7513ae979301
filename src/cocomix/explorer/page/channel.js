// Which concepts brought a token through the channel: a section of the token's panel, filled when its answer arrives.

import { post } from "./api.js";
import { bar } from "./charts.js";
import { el, setChildren, skeleton } from "./dom.js";
import { concept, nameOrNumber, nats, signed } from "./format.js";
import { link } from "./state.js";
import { LatestRequest } from "./timing.js";

const TOP = 6;

export class ChannelSection {
  #requests = new LatestRequest();
  #asked = null;

  constructor() {
    this.node = el("section", { class: "channel", hidden: true });
  }

  /** Shows token `at` of `text`, which is `token` in the reading; asks for it unless it is shown already. */
  show(model, text, at, token) {
    const known = token.channel !== null && token.channel !== undefined;
    this.node.hidden = !known;
    const asked = known ? JSON.stringify([model, text, at]) : null;
    if (asked === this.#asked) return;
    this.#asked = asked;
    this.#requests.stop();
    if (!known) return;
    setChildren(this.node, heading(), skeleton(3, "Asking which concepts brought it"));
    this.#requests.run(
      (signal) => post("api/channel", { model, text, at, top: TOP }, signal),
      (answer) => setChildren(this.node, heading(), ...contributions(answer)),
      (error) => {
        this.#asked = null; // the next selection asks again
        setChildren(this.node, heading(), el("p", { class: "soft" }, error.message));
      },
    );
  }

  stop() {
    this.#requests.stop();
    this.#asked = null;
    this.node.hidden = true;
  }
}

const heading = () => el("h4", null, "What the channel brought this token");

function contributions(answer) {
  const largest = Math.max(...answer.concepts.map((row) => Math.abs(row.nats)), Math.abs(answer.rest), 1e-9);
  const nothing = answer.concepts.length === 0;
  return [
    !nothing &&
      el(
        "ul",
        { class: "brought" },
        answer.concepts.map((row) => contributed(row, largest)),
        el(
          "li",
          { title: "biases, and the mean of the hidden state" },
          el("span", { class: "soft" }, "no concept"),
          bar(Math.abs(answer.rest), largest, answer.rest >= 0 ? "more" : "less"),
          el("span", { class: "value" }, signed(answer.rest, 3)),
          el("span"),
        ),
      ),
    el(
      "p",
      { class: "missed soft" },
      `${nats(answer.nats)} nats exactly: what it loses with the vector zeroed at every position. `,
      nothing
        ? "This student's channel has no concepts."
        : `The concepts are first order: gradient times contribution, over all positions before it; all together ${nats(answer.first_order)}.`,
    ),
  ];
}

function contributed(row, largest) {
  const where = row.positions === 1 ? "1 position" : `${row.positions} positions`;
  const words = `${nameOrNumber(row.concept, row.name)}: ${signed(row.nats, 3)} nats, of which ${signed(row.here, 3)} where the token is predicted; mixed in at ${where}`;
  return el(
    "li",
    { title: words },
    el("span", { class: "concept-name" }, row.name ?? el("span", { class: "soft" }, "no name")),
    bar(Math.abs(row.nats), largest, row.nats >= 0 ? "more" : "less"),
    el("span", { class: "value" }, signed(row.nats, 3)),
    el("a", { class: "number", href: link("concepts", { open: row.concept }) }, concept(row.concept)),
  );
}
