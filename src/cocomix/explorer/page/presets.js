// The steering gallery: the concepts with the best output scores, each a button that steers with it.

import { get } from "./api.js";
import { bar } from "./charts.js";
import { el, errorBox, setChildren, skeleton } from "./dom.js";
import { count, decimal, nameOrNumber, percent, signed, tokenLabel } from "./format.js";
import { LatestRequest } from "./timing.js";

const WORDS = 4; // own tokens listed of each concept

/** `onpick(preset)` gets the server's record of the chosen one; `onload(presets)` all of them. */
export function presetGallery({ onpick, onload }) {
  const requests = new LatestRequest();
  const node = el("div", { class: "presets" });
  let shown = null; // the model whose concepts are shown

  function show(model) {
    if (model === shown) return;
    shown = model;
    setChildren(node, skeleton(3, "Scoring concepts"));
    requests.run((signal) => get("api/presets", { model }, signal), draw, (error) => {
      shown = null;
      setChildren(
        node,
        errorBox(error, () => show(model)),
      );
    });
  }

  function draw({ presets, scored }) {
    onload(presets);
    const largest = Math.max(...presets.map((preset) => preset.score), 1e-9);
    setChildren(
      node,
      el(
        "p",
        { class: "soft small-text" },
        presets.length
          ? `Of ${count(scored)} named concepts, those that most raise the probability of their own tokens, words first.`
          : `No concept to recommend: ${count(scored)} named concepts were scored, and none raises its own tokens.`,
      ),
      presets.length > 0 &&
        el(
          "ul",
          { class: "preset-list", "aria-label": "Concepts that steer best" },
          presets.map((preset) => el("li", null, presetButton(preset, largest))),
        ),
    );
  }

  function presetButton(preset, largest) {
    const name = nameOrNumber(preset.concept, preset.name);
    const words = preset.words.slice(0, WORDS).map((word) => tokenLabel(word));
    const hint =
      `output score ${signed(preset.score, 3)}: ${decimal(preset.steered, 3)} with c${preset.concept} amplified by` +
      ` ${preset.strength}, ${decimal(preset.unsteered, 3)} without`;
    return el(
      "button",
      {
        type: "button",
        class: "preset",
        "data-concept": preset.concept,
        title: hint,
        "aria-label": `Steer with ${name}, output score ${percent(preset.score)}`,
        onclick: () => onpick(preset),
      },
      el("span", { class: "concept-name" }, name),
      bar(preset.score, largest, "strength"),
      el("span", { class: "value" }, percent(preset.score)),
      el("span", { class: "preset-words" }, words.join("  ")),
    );
  }

  return { node, show };
}
