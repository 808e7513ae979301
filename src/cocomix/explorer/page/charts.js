// Small diagrams. Bars are elements with a width; the histogram and the overlap are SVG. Each says itself in words too.

import { el, svg } from "./dom.js";
import { alone, count, decimal, percent, short, signed } from "./format.js";

const share = (value, most) => `${(Math.max(0, Math.min(1, most > 0 ? value / most : 0)) * 100).toFixed(2)}%`;

/** A horizontal bar of `value` out of `most`; `tone` is its class. */
export function bar(value, most, tone = "") {
  return el("span", { class: `bar ${tone}`, vars: { "--w": share(value, most) }, "aria-hidden": "true" });
}

/** Tokens and their effects, largest first, as rows of bars. */
export function effects(rows, unit) {
  const most = Math.max(...rows.map((row) => Math.abs(row.effect)), 1e-9);
  return el(
    "ol",
    { class: "effects" },
    rows.map((row) =>
      el(
        "li",
        { title: `token ${row.id}: ${signed(row.effect, 3)} ${unit}` },
        el("code", null, alone(row.token, row.id)),
        bar(Math.abs(row.effect), most, row.effect >= 0 ? "more" : "less"),
        el("span", { class: "value" }, signed(row.effect, Math.abs(row.effect) < 0.1 ? 3 : 2)),
      ),
    ),
  );
}

/** The part of a histogram with anything in it, one empty column on each side. */
function trimmed({ edges, counts }) {
  const first = Math.max(0, counts.findIndex((one) => one > 0) - 1);
  const last = Math.min(counts.length, counts.findLastIndex((one) => one > 0) + 2);
  return { edges: edges.slice(first, last + 1), counts: counts.slice(first, last) };
}

/** How often each strength occurs. `edges` has one more number than `counts`; there is at least one count. */
export function histogram(whole) {
  const { edges, counts } = trimmed(whole);
  const [width, height, foot] = [320, 96, 18];
  const most = Math.max(...counts, 1);
  const each = width / counts.length;
  const total = counts.reduce((sum, one) => sum + one, 0);
  const bars = counts.map((one, at) => {
    const tall = one === 0 ? 0 : Math.max(1.5, (one / most) * (height - 4));
    return svg(
      "rect",
      { x: at * each + 0.5, y: height - tall, width: Math.max(0.5, each - 1), height: tall, class: "column" },
      svg("title", null, `${decimal(edges[at])} to ${decimal(edges[at + 1])}: ${count(one)}`),
    );
  });
  const tick = (at, anchor) =>
    svg("text", { x: (at / counts.length) * width, y: height + 13, "text-anchor": anchor }, decimal(edges[at]));
  const range = `${decimal(edges[0])} to ${decimal(edges.at(-1))}`;
  const words = `Strengths of ${count(total)} predictions, from ${range}; the tallest column has ${count(most)}`;
  const middle = Math.floor(counts.length / 2);
  return svg(
    "svg",
    {
      viewBox: `0 0 ${width} ${height + foot}`,
      class: "histogram",
      role: "img",
      "aria-label": words,
    },
    svg("line", { x1: 0, x2: width, y1: height, y2: height, class: "axis" }),
    bars,
    tick(0, "start"),
    tick(middle, "middle"),
    tick(counts.length, "end"),
  );
}

/** Where it was predicted against where it was true, as two bars that lie over each other where both hold. */
export function overlap(agreement) {
  const { predicted, true: real, both } = agreement;
  const all = predicted + real - both;
  const width = 320;
  const scale = all > 0 ? width / all : 0;
  const from = (predicted - both) * scale;
  const band = (y, x, wide, tone) =>
    svg("rect", { x, y, width: Math.max(wide, wide > 0 ? 1.5 : 0), height: 16, rx: 2, class: tone });
  const words = `Predicted at ${count(predicted)} places, true at ${count(real)}, both at ${count(both)}`;
  return el(
    "figure",
    { class: "overlap" },
    svg(
      "svg",
      { viewBox: `0 0 ${width} 42`, role: "img", "aria-label": words, preserveAspectRatio: "none" },
      band(0, 0, predicted * scale, "predicted"),
      band(24, from, real * scale, "real"),
      both > 0 && svg("rect", { x: from, y: 16, width: Math.max(both * scale, 1.5), height: 8, class: "both" }),
    ),
    el(
      "figcaption",
      null,
      el("span", { class: "key predicted" }, `predicted ${short(predicted)}`),
      el("span", { class: "key both" }, `both ${short(both)}`),
      el("span", { class: "key real" }, `true ${short(real)}`),
    ),
    el(
      "dl",
      { class: "facts two" },
      el("dt", null, "Precision"),
      el("dd", null, percent(agreement.precision), el("span", { class: "soft" }, " of its predictions are true")),
      el("dt", null, "Recall"),
      el("dd", null, percent(agreement.recall), el("span", { class: "soft" }, " of its true places are predicted")),
    ),
  );
}

/** Base against steered, as two bars with their numbers. `show` writes a number. */
export function pair(title, hint, base, steered, most, show) {
  const row = (label, value, tone) => [
    el("span", { class: "pair-label" }, label),
    bar(value ?? 0, most, tone),
    el("span", { class: "value" }, value === null || value === undefined ? "–" : show(value)),
  ];
  return el(
    "div",
    { class: "meter", title: hint },
    el("div", { class: "meter-title" }, title),
    el("div", { class: "pair" }, row("base", base, "base"), row("steered", steered, "steered")),
    el("div", { class: "soft small-text" }, hint),
  );
}
