// Concepts: a list of all the student's concepts, to search and sort, and the page of one of them.

import { get } from "./api.js";
import { dashboard } from "./dashboard.js";
import { announce, button, el, empty, errorBox, noConcepts, setChildren, skeleton } from "./dom.js";
import { concept, count, decimal, percent } from "./format.js";
import { newItem } from "./interventions.js";
import { nameEditor } from "./name_editor.js";
import { link } from "./state.js";
import { debounce, LatestRequest } from "./timing.js";
import { VirtualList } from "./virtual.js";

const ROW_HEIGHT = 50; // pixels
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
  const requests = new LatestRequest();
  let listQuery = null; // the model, search and order that the list shows
  let openQuery = null; // the model and concept that the dashboard shows

  const search = el("input", {
    type: "search",
    placeholder: "Name, token or number",
    "aria-label": "Search concepts",
    spellcheck: "false",
    oninput: () => state.set({ q: search.value }),
    onkeydown: (event) => {
      if (event.key !== "ArrowDown" && event.key !== "Enter") return;
      event.preventDefault();
      if (reload.pending) reload.now();
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
    height: ROW_HEIGHT,
    fetch: fetchRows,
    row: rowContent,
    onpick: (row) => state.set({ open: row.concept }),
    onload: showTotal,
    onfail: (error) =>
      setChildren(
        below,
        errorBox(error, () => list.reset()),
      ),
  });
  const board = el("div", { class: "dashboard", "aria-live": "off" });
  const node = el(
    "div",
    { class: "concepts" },
    el("div", { class: "card list" }, el("div", { class: "list-head" }, search, total, sort), list.node, below),
    board,
  );
  const reload = debounce(200, () => list.reset());

  async function fetchRows(offset, limit) {
    const { model, q, sort: by } = state.now;
    const answer = await get("api/concepts", { model, q: q.trim(), sort: by, offset, limit });
    return { total: answer.total, rows: answer.concepts };
  }

  function rowContent(row) {
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

  function showTotal(matches) {
    const { q } = state.now;
    total.textContent = `${count(matches)} ${matches === 1 ? "concept" : "concepts"}${q ? " found" : ""}`;
    announce(total.textContent);
    setChildren(
      below,
      matches === 0 && empty("No concept found", "Search for another name, a token, or a number such as c12."),
    );
    list.mark((row) => row.concept === state.now.open);
    if (state.now.open === null && list.at(0)) state.set({ open: list.at(0).concept });
  }

  function updateList({ immediately = false } = {}) {
    if (state.now.view !== "concepts" || !app.withConcepts.length) return;
    const { model, q, sort: by } = state.now;
    if (search.value !== q) search.value = q;
    sort.value = SORTS.some(([key]) => key === by) ? by : SORTS[0][0];
    const query = JSON.stringify([model, q, by]);
    if (query === listQuery) return;
    listQuery = query;
    (immediately ? reload.now : reload)();
  }

  const openSoon = debounce(60, open);

  function open() {
    if (state.now.view !== "concepts") return;
    const { model, open: id } = state.now;
    const query = JSON.stringify([model, id]);
    if (id === null || query === openQuery) return;
    openQuery = query;
    board.setAttribute("aria-busy", "true");
    if (!board.childElementCount) setChildren(board, el("div", { class: "card" }, skeleton(9, "Loading the concept")));
    requests.run((signal) => get("api/concept", { model, id }, signal), show, failed);
  }

  function show(answer) {
    board.removeAttribute("aria-busy");
    list.mark((row) => row.concept === answer.concept);
    const name = nameEditor(answer, state.now.model, updateName);
    const actions = [
      button("Shade text by it", () => shade(answer.concept)),
      button("Steer with it", () => steer(answer.concept), { class: "primary" }),
    ];
    setChildren(board, dashboard(answer, { name, actions, href: (id) => link("concepts", { open: id }) }));
    announce(`${concept(answer.concept)} ${answer.about.name ?? "without a name"}`);
  }

  function failed(error) {
    board.removeAttribute("aria-busy");
    openQuery = null;
    setChildren(board, el("div", { class: "card" }, errorBox(error, open)));
  }

  function updateName(record) {
    list.change((row) => row.concept === record.concept, { name: record.name, edited: record.edited });
  }

  const shade = (id) => state.set({ view: "read", concept: id }, { step: true });

  function steer(id) {
    const present = state.now.steering.some((item) => item.concept === id);
    state.set(
      { view: "steer", steering: present ? state.now.steering : [...state.now.steering, newItem(id)] },
      { step: true },
    );
  }

  state.on(["q", "sort"], updateList);
  state.on(["open", "model"], () => {
    list.mark((row) => row.concept === state.now.open);
    openSoon();
  });
  state.on(["model"], () => updateList({ immediately: true }));

  return {
    node,
    show() {
      if (!app.withConcepts.length) {
        return setChildren(board, el("div", { class: "card" }, noConcepts()));
      }
      updateList({ immediately: true });
      open();
    },
    search: () => search.focus(),
  };
}
