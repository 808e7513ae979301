// Concepts: all of a student's concepts to search and sort, and beside them the one that is open.

import { get } from "./api.js";
import { dashboard } from "./dashboard.js";
import { announce, el, empty, noConcepts, put, skeleton, trouble } from "./dom.js";
import { concept, count, decimal, percent } from "./format.js";
import { Latest, later } from "./timing.js";
import { VirtualList } from "./virtual.js";

const ROW = 50; // pixels
const SORTS = [
  ["predicted", "most predicted", (row) => percent(row.predicted)],
  ["true", "most often true", (row) => percent(row.true)],
  ["precision", "precision", (row) => percent(row.precision)],
  ["recall", "recall", (row) => percent(row.recall)],
  ["stability", "stability of the name", (row) => decimal(row.stability)],
  ["name", "name", (row) => percent(row.predicted)],
  ["number", "number", (row) => percent(row.predicted)],
];

export function conceptsView(app) {
  const { state } = app;
  const opening = new Latest();
  let listed = null; // the model, search and order that the list shows
  let opened = null; // the model and concept that the dashboard shows

  const search = el("input", {
    type: "search",
    placeholder: "Name, token or number",
    "aria-label": "Search concepts",
    spellcheck: "false",
    oninput: () => state.set({ q: search.value }),
    onkeydown: (event) => {
      if (event.key !== "ArrowDown" && event.key !== "Enter") return;
      event.preventDefault();
      if (relist.soon) relist.now();
      list.node.focus();
      list.go(0);
    },
  });
  const sort = el(
    "select",
    { "aria-label": "Sort concepts by", onchange: () => state.set({ sort: sort.value }) },
    SORTS.map(([key, label]) => el("option", { value: key }, label)),
  );
  const total = el("p", { class: "soft" });
  const below = el("div", { class: "list-below" });
  const list = new VirtualList({
    label: "Concepts",
    height: ROW,
    fetch: (offset, limit) => page(offset, limit),
    row: conceptLine,
    onpick: (row) => state.set({ open: row.concept }),
    onload: loaded,
    onfail: (error) =>
      put(
        below,
        trouble(error, () => list.reset()),
      ),
  });
  const board = el("div", { class: "dashboard", "aria-live": "off" });
  const node = el(
    "div",
    { class: "concepts" },
    el("div", { class: "card list" }, el("div", { class: "list-head" }, search, total, sort), list.node, below),
    board,
  );
  const relist = later(200, () => list.reset());

  async function page(offset, limit) {
    const { model, q, sort: by } = state.now;
    const answer = await get("/api/concepts", { model, q: q.trim(), sort: by, offset, limit });
    return { total: answer.total, rows: answer.concepts };
  }

  function conceptLine(row) {
    const [, label, show] = SORTS.find(([key]) => key === state.now.sort) ?? SORTS[0];
    return [
      el("span", { class: "line-name" }, row.name ?? el("span", { class: "soft" }, "no name")),
      el("span", { class: "line-value", title: label }, show(row)),
      el(
        "span",
        { class: "line-soft" },
        [
          concept(row.concept),
          row.edited && "edited",
          `predicted ${percent(row.predicted)}`,
          `true ${percent(row.true)}`,
        ]
          .filter(Boolean)
          .join(" · "),
      ),
    ];
  }

  function loaded(found) {
    const { q } = state.now;
    total.textContent = `${count(found)} ${found === 1 ? "concept" : "concepts"}${q ? " found" : ""}`;
    announce(total.textContent);
    put(below, found === 0 && empty("No concept found", "Search for another name, a token, or a number such as c12."));
    list.mark((row) => row.concept === state.now.open);
    if (state.now.open === null && list.at(0)) state.set({ open: list.at(0).concept });
  }

  function relook({ atOnce = false } = {}) {
    if (state.now.view !== "concepts" || !app.predicting.length) return;
    const { model, q, sort: by } = state.now;
    if (search.value !== q) search.value = q;
    sort.value = SORTS.some(([key]) => key === by) ? by : SORTS[0][0];
    const wanted = JSON.stringify([model, q, by]);
    if (wanted === listed) return;
    listed = wanted;
    (atOnce ? relist.now : relist)();
  }

  const reopen = later(60, open);

  function open() {
    if (state.now.view !== "concepts") return;
    const { model, open: id } = state.now;
    const wanted = JSON.stringify([model, id]);
    if (id === null || wanted === opened) return;
    opened = wanted;
    board.setAttribute("aria-busy", "true");
    if (!board.childElementCount) put(board, el("div", { class: "card" }, skeleton(9, "Loading the concept")));
    opening.run((signal) => get("/api/concept", { model, id }, signal), show, failed);
  }

  function show(answer) {
    board.removeAttribute("aria-busy");
    list.mark((row) => row.concept === answer.concept);
    put(board, dashboard(answer, { model: state.now.model, onname: renamed, shade, steer }));
    announce(`${concept(answer.concept)} ${answer.about.name ?? "without a name"}`);
  }

  function failed(error) {
    board.removeAttribute("aria-busy");
    opened = null;
    put(board, el("div", { class: "card" }, trouble(error, open)));
  }

  function renamed(about) {
    list.change((row) => row.concept === about.concept, { name: about.name, edited: about.edited });
  }

  const shade = (id) => state.set({ view: "read", concept: id }, { step: true });

  function steer(id) {
    const already = state.now.steering.some((item) => item.concept === id);
    const item = { concept: id, do: "amplify", amount: 4, start: 0 };
    state.set(
      { view: "steer", steering: already ? state.now.steering : [...state.now.steering, item] },
      { step: true },
    );
  }

  state.on(["q", "sort"], relook);
  state.on(["open", "model"], () => {
    list.mark((row) => row.concept === state.now.open);
    reopen();
  });
  state.on(["model"], () => relook({ atOnce: true }));

  return {
    node,
    show() {
      if (!app.predicting.length) {
        return put(board, el("div", { class: "card" }, noConcepts()));
      }
      relook({ atOnce: true });
      open();
    },
    search: () => search.focus(),
  };
}
