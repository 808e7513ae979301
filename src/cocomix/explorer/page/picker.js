// Choosing a concept by typing: a text field with a list of what it finds.

import { get } from "./api.js";
import { el, put } from "./dom.js";
import { concept, percent } from "./format.js";
import { Latest, later } from "./timing.js";

const SHOWN = 8;
let made = 0;

/** `model()` names the model whose concepts are searched; `onpick({concept, name})` gets the chosen one. */
export function conceptPicker({ label, model, onpick }) {
  const id = `picker-${++made}`;
  const asking = new Latest();
  let rows = [];
  let active = -1;
  let taking = false; // Enter was pressed before the answer was there

  const list = el("div", { id, class: "picker-list", role: "listbox", "aria-label": "Concepts found", hidden: true });
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
      taking = false;
      search();
    },
    onfocus: () => search.now(),
    onblur: () => close(),
    onkeydown: pressed,
  });
  const search = later(150, () => {
    asking.run(
      (signal) =>
        get(
          "/api/concepts",
          { model: model(), q: box.value.trim(), sort: "predicted", offset: 0, limit: SHOWN },
          signal,
        ),
      (answer) => {
        rows = answer.concepts;
        active = rows.length ? 0 : -1;
        if (taking && rows.length) return take(rows[0]);
        draw(rows.length ? null : "No concept found; try a name, a token, or a number such as c12.");
      },
      (error) => {
        rows = [];
        draw(error.message);
      },
    );
  });

  function draw(note) {
    // an answer can come after the field was left
    if (document.activeElement !== box) return;
    list.hidden = false;
    box.setAttribute("aria-expanded", "true");
    put(list, note ? el("p", { class: "soft" }, note) : rows.map(line));
    if (active >= 0) box.setAttribute("aria-activedescendant", `${id}-${active}`);
    else box.removeAttribute("aria-activedescendant");
  }

  function line(row, at) {
    return el(
      "div",
      {
        id: `${id}-${at}`,
        role: "option",
        class: `picker-row ${at === active ? "active" : ""}`,
        "aria-selected": String(at === active),
        // before the field loses the focus and closes the list
        onmousedown: (event) => {
          event.preventDefault();
          take(row);
        },
      },
      el("span", { class: "concept-name" }, row.name ?? el("span", { class: "soft" }, "no name")),
      el("span", { class: "soft" }, `${concept(row.concept)} · ${percent(row.predicted)}`),
    );
  }

  function take(row) {
    box.value = "";
    close();
    onpick(row);
  }

  function close() {
    taking = false;
    search.stop();
    asking.stop();
    list.hidden = true;
    box.setAttribute("aria-expanded", "false");
    box.removeAttribute("aria-activedescendant");
  }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape" && !list.hidden) {
      event.stopPropagation();
      return close();
    }
    if (event.key === "ArrowDown" && list.hidden) return search.now();
    if (event.key === "Enter") {
      event.preventDefault();
      if (search.soon || asking.busy) {
        taking = true;
        if (search.soon) search.now();
      } else if (!list.hidden && active >= 0) take(rows[active]);
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
