// Small diagrams. Bars are elements with a width; the histogram and the overlap are SVG with a description in words.

import { el, svg } from "./dom.js";
import { count, decimal, percent, short, signed, tokenLabel } from "./format.js";

const width = (value, largest) => `${(Math.max(0, Math.min(1, largest > 0 ? value / largest : 0)) * 100).toFixed(2)}%`;

/** A horizontal bar of `value` out of `largest`; `tone` is its class. */
export function bar(value, largest, tone = "") {
  return el("span", { class: `bar ${tone}`, vars: { "--w": width(value, largest) }, "aria-hidden": "true" });
}

/** Tokens and their effects, largest first, as rows of bars. */
export function effects(rows, unit) {
  const largest = Math.max(...rows.map((row) => Math.abs(row.effect)), 1e-9);
  return el(
    "ol",
    { class: "effects" },
    rows.map((row) =>
      el(
        "li",
        { title: `token ${row.id}: ${signed(row.effect, 3)} ${unit}` },
        el("code", null, tokenLabel(row.token, row.id)),
        bar(Math.abs(row.effect), largest, row.effect >= 0 ? "more" : "less"),
        el("span", { class: "value" }, signed(row.effect, Math.abs(row.effect) < 0.1 ? 3 : 2)),
      ),
    ),
  );
}

/** The columns of a histogram that are not empty, with one empty column on each side. */
function trimmed({ edges, counts }) {
  const first = Math.max(0, counts.findIndex((count) => count > 0) - 1);
  const last = Math.min(counts.length, counts.findLastIndex((count) => count > 0) + 2);
  return { edges: edges.slice(first, last + 1), counts: counts.slice(first, last) };
}

/** How often each strength occurs. `edges` has one more number than `counts`; at least one count is not 0. */
export function histogram(full) {
  const { edges, counts } = trimmed(full);
  const [chartWidth, chartHeight, labelHeight] = [320, 96, 18];
  const highest = Math.max(...counts, 1);
  const columnWidth = chartWidth / counts.length;
  const total = counts.reduce((sum, value) => sum + value, 0);
  const bars = counts.map((value, index) => {
    const height = value === 0 ? 0 : Math.max(1.5, (value / highest) * (chartHeight - 4));
    return svg(
      "rect",
      {
        x: index * columnWidth + 0.5,
        y: chartHeight - height,
        width: Math.max(0.5, columnWidth - 1),
        height,
        class: "column",
      },
      svg("title", null, `${decimal(edges[index])} to ${decimal(edges[index + 1])}: ${count(value)}`),
    );
  });
  const tick = (index, anchor) =>
    svg(
      "text",
      { x: (index / counts.length) * chartWidth, y: chartHeight + 13, "text-anchor": anchor },
      decimal(edges[index]),
    );
  const range = `${decimal(edges[0])} to ${decimal(edges.at(-1))}`;
  const words = `Strengths of ${count(total)} predictions, from ${range}; the highest column has ${count(highest)}`;
  const middle = Math.floor(counts.length / 2);
  return svg(
    "svg",
    {
      viewBox: `0 0 ${chartWidth} ${chartHeight + labelHeight}`,
      class: "histogram",
      role: "img",
      "aria-label": words,
    },
    svg("line", { x1: 0, x2: chartWidth, y1: chartHeight, y2: chartHeight, class: "axis" }),
    bars,
    tick(0, "start"),
    tick(middle, "middle"),
    tick(counts.length, "end"),
  );
}

/** Where a concept is predicted and where it is true, as two bars that overlap where both hold. */
export function overlap(agreement) {
  const { predicted, true: real, both } = agreement;
  const either = predicted + real - both;
  const chartWidth = 320;
  const scale = either > 0 ? chartWidth / either : 0;
  const start = (predicted - both) * scale;
  const band = (y, x, length, tone) =>
    svg("rect", { x, y, width: Math.max(length, length > 0 ? 1.5 : 0), height: 16, rx: 2, class: tone });
  const words = `Predicted at ${count(predicted)} positions, true at ${count(real)}, both at ${count(both)}`;
  return el(
    "figure",
    { class: "overlap" },
    svg(
      "svg",
      { viewBox: `0 0 ${chartWidth} 42`, role: "img", "aria-label": words, preserveAspectRatio: "none" },
      band(0, 0, predicted * scale, "predicted"),
      band(24, start, real * scale, "real"),
      both > 0 && svg("rect", { x: start, y: 16, width: Math.max(both * scale, 1.5), height: 8, class: "both" }),
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
      el("dd", null, percent(agreement.recall), el("span", { class: "soft" }, " of its true positions are predicted")),
    ),
  );
}

/** Base and steered values as two bars with their numbers; `format` writes a number. */
export function pair(title, hint, base, steered, largest, format) {
  const row = (label, value, tone) => [
    el("span", { class: "pair-label" }, label),
    bar(value ?? 0, largest, tone),
    el("span", { class: "value" }, value === null || value === undefined ? "–" : format(value)),
  ];
  return el(
    "div",
    { class: "meter", title: hint },
    el("div", { class: "meter-title" }, title),
    el("div", { class: "pair" }, row("base", base, "base"), row("steered", steered, "steered")),
    el("div", { class: "soft small-text" }, hint),
  );
}
