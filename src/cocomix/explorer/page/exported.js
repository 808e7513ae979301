// A page of its own with the dashboards of some concepts, as `cocomix export-dashboards` writes it. It asks for nothing:
// the dashboards are in it, and the open one is named after `#` in the address.

import { dashboard } from "./dashboard.js";
import { announce, el, empty, setChildren } from "./dom.js";
import { concept, count, nameOrNumber, percent } from "./format.js";

const { about, dashboards } = JSON.parse(document.getElementById("exported").textContent);
const byNumber = new Map(dashboards.map((answer) => [answer.concept, answer]));
const words = new Map(dashboards.map((answer) => [answer.concept, searchable(answer)]));

const search = el("input", {
  type: "search",
  placeholder: "Name, token or number",
  "aria-label": "Search concepts",
  spellcheck: "false",
  oninput: filter,
});
const total = el("p", { class: "soft" });
const rows = new Map(dashboards.map((answer) => [answer.concept, row(answer)]));
const none = el(
  "div",
  { class: "list-below", hidden: true },
  empty("No concept found", "Search for another name, a token, or a number such as c12."),
);
const board = el("div", { class: "dashboard" });

/** Where a concept's dashboard is; null for one that is not in this page. */
function address(id) {
  return byNumber.has(id) ? `#c${id}` : null;
}

function searchable({ concept: id, about: known }) {
  const tokens = [...known.tokens, ...known.next_tokens].map((score) => score.token);
  return [concept(id), known.name ?? "", ...tokens].join("\n").toLowerCase();
}

function row({ concept: id, about: known, predicted, agreement }) {
  const labelled = agreement && agreement.positions ? percent(agreement.true / agreement.positions) : "–";
  return el(
    "li",
    null,
    el(
      "a",
      { class: "exported-row", href: address(id) },
      el("span", { class: "line-name" }, known.name ?? el("span", { class: "soft" }, "no name")),
      el("span", { class: "line-soft" }, `${concept(id)} · predicted ${percent(predicted.share)} · true ${labelled}`),
    ),
  );
}

function filter() {
  const query = search.value.trim().toLowerCase();
  let shown = 0;
  for (const [id, node] of rows) {
    node.hidden = !words.get(id).includes(query);
    if (!node.hidden) shown += 1;
  }
  total.textContent = `${count(shown)} ${shown === 1 ? "concept" : "concepts"}${query ? " found" : ""}`;
  none.hidden = shown > 0;
  announce(total.textContent);
}

/** Shows the concept that the address names, or the first one. */
function open() {
  const named = /^#c(\d+)$/.exec(location.hash);
  const answer = byNumber.get(named ? Number(named[1]) : null) ?? dashboards[0];
  for (const [id, node] of rows) {
    const link = node.firstElementChild;
    if (id === answer.concept) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const name = el(
    "div",
    { class: "name-editor" },
    el("span", { class: "number" }, concept(answer.concept)),
    el("h2", null, answer.about.name ?? el("span", { class: "soft" }, "no name")),
    answer.about.edited && el("span", { class: "badge" }, "edited"),
    !answer.about.name && answer.about.why && el("p", { class: "soft why" }, answer.about.why),
  );
  setChildren(board, dashboard(answer, { name, href: address }));
  document.title = `${nameOrNumber(answer.concept, answer.about.name)} · ${about.title}`;
  return answer;
}

function follow() {
  const answer = open();
  scrollTo(0, 0);
  announce(`${concept(answer.concept)} ${answer.about.name ?? "without a name"}`);
}

setChildren(
  document.getElementById("main"),
  el(
    "div",
    { class: "concepts" },
    el(
      "nav",
      { class: "card list", "aria-label": "Concepts" },
      el("div", { class: "list-head" }, search, total, el("p", { class: "soft exported-rule" }, about.rule)),
      el("ol", { class: "exported-rows" }, [...rows.values()]),
      none,
    ),
    board,
  ),
);
document.getElementById("skip").addEventListener("click", () => document.getElementById("main").focus());
addEventListener("hashchange", follow);
filter();
open();
