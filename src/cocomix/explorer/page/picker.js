// Finding concepts: a text field that searches them, and the names of concepts that are known by number only.

import { get } from "./api.js";
import { el, setChildren } from "./dom.js";
import { concept, percent } from "./format.js";
import { debounce, LatestRequest } from "./timing.js";

const SHOWN = 8;
let pickers = 0;

/** `model()` is the key of the model whose concepts are searched; `onpick({concept, name})` gets the chosen one. */
export function conceptPicker({ label, model, onpick }) {
  const id = `picker-${++pickers}`;
  const requests = new LatestRequest();
  let rows = [];
  let active = -1;
  let pickFirst = false; // Enter was pressed before the answer arrived

  const list = el("div", {
    id,
    class: "picker-list",
    role: "listbox",
    "aria-label": "Matching concepts",
    hidden: true,
  });
  const box = el("input", {
    type: "text",
    class: "picker-box",
    placeholder: "Add a concept: name, token or number",
    role: "combobox",
    "aria-label": label,
    "aria-autocomplete": "list",
    "aria-expanded": "false",
    "aria-controls": id,
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => {
      pickFirst = false;
      search();
    },
    onfocus: () => search.now(),
    onblur: () => close(),
    onkeydown: onKey,
  });
  const search = debounce(150, () => {
    requests.run(
      (signal) =>
        get(
          "api/concepts",
          { model: model(), q: box.value.trim(), sort: "predicted", offset: 0, limit: SHOWN },
          signal,
        ),
      (answer) => {
        rows = answer.concepts;
        active = rows.length ? 0 : -1;
        if (pickFirst && rows.length) return pick(rows[0]);
        draw(rows.length ? null : "No concept matches; try a name, a token, or a number such as c12.");
      },
      (error) => {
        rows = [];
        draw(error.message);
      },
    );
  });

  function draw(note) {
    // an answer may arrive after the field lost the focus
    if (document.activeElement !== box) return;
    list.hidden = false;
    box.setAttribute("aria-expanded", "true");
    setChildren(list, note ? el("p", { class: "soft" }, note) : rows.map(rowNode));
    if (active >= 0) box.setAttribute("aria-activedescendant", `${id}-${active}`);
    else box.removeAttribute("aria-activedescendant");
  }

  function rowNode(row, index) {
    return el(
      "div",
      {
        id: `${id}-${index}`,
        role: "option",
        class: `picker-row ${index === active ? "active" : ""}`,
        "aria-selected": String(index === active),
        // before the field loses the focus and closes the list
        onmousedown: (event) => {
          event.preventDefault();
          pick(row);
        },
      },
      el("span", { class: "concept-name" }, row.name ?? el("span", { class: "soft" }, "no name")),
      el("span", { class: "soft" }, `${concept(row.concept)} · ${percent(row.predicted)}`),
    );
  }

  function pick(row) {
    box.value = "";
    close();
    onpick(row);
  }

  function close() {
    pickFirst = false;
    search.stop();
    requests.stop();
    list.hidden = true;
    box.setAttribute("aria-expanded", "false");
    box.removeAttribute("aria-activedescendant");
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape" && !list.hidden) {
      event.stopPropagation();
      return close();
    }
    if (event.key === "ArrowDown" && list.hidden) return search.now();
    if (event.key === "Enter") {
      event.preventDefault();
      if (search.pending || requests.busy) {
        pickFirst = true;
        if (search.pending) search.now();
      } else if (!list.hidden && active >= 0) pick(rows[active]);
      return;
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step === undefined || rows.length === 0) return;
    event.preventDefault();
    active = (active + step + rows.length) % rows.length;
    draw(null);
  }

  return { node: el("div", { class: "picker" }, box, list), focus: () => box.focus() };
}

/** Names of concepts, each requested once; `model()` is the model's key, `onload()` is called after a name arrived. */
export function nameCache(model, onload) {
  const names = new Map();
  const requested = new Set();

  return {
    get: (id) => names.get(id) ?? null,
    set: (id, name) => names.set(id, name),
    clear: () => {
      names.clear();
      requested.clear();
    },
    async request(id) {
      if (names.has(id) || requested.has(id)) return;
      requested.add(id);
      const key = model();
      try {
        const query = { model: key, q: `c${id}`, sort: "number", offset: 0, limit: 1 };
        const { concepts } = await get("api/concepts", query);
        if (key !== model() || concepts[0]?.concept !== id) return;
        names.set(id, concepts[0].name);
        onload();
      } catch {
        // the number is shown instead; the next view requests the name again
        requested.delete(id);
      }
    },
  };
}
