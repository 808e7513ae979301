// A concept's name, and a form to change it in place.

import { post } from "./api.js";
import { announce, button, el, setChildren } from "./dom.js";
import { concept, nameOrNumber } from "./format.js";

/** `onname(name)` after a change, with the server's record of the name. */
export function nameEditor({ concept: id, about: initial }, model, onname) {
  let record = initial;
  const node = el("div", { class: "name-editor" });

  function show() {
    setChildren(
      node,
      el("span", { class: "number" }, concept(id)),
      el("h2", null, record.name ?? el("span", { class: "soft" }, "no name")),
      record.edited && el("span", { class: "badge" }, "edited"),
      button("Rename", edit, { class: "small", "aria-label": `Rename ${nameOrNumber(id, record.name)}` }),
      !record.name && record.why && el("p", { class: "soft why" }, record.why),
    );
  }

  function edit() {
    const box = el("input", {
      type: "text",
      value: record.name ?? "",
      "aria-label": `Name of concept ${id}`,
      maxlength: "120",
    });
    const message = el(
      "p",
      { class: "soft why" },
      record.edited ? "Leave it empty to restore the automatic name." : "",
    );
    const close = () => {
      show();
      node.querySelector("button").focus();
    };
    const save = async () => {
      try {
        record = await post("api/name", { model, concept: id, name: box.value.trim() });
        onname(record);
        announce(record.name ? `renamed to ${record.name}` : "name removed");
        close();
      } catch (error) {
        setChildren(message, error.message);
        message.classList.add("bad");
      }
    };
    const form = el(
      "form",
      {
        class: "rename",
        onsubmit: (event) => {
          event.preventDefault();
          save();
        },
        onkeydown: (event) => {
          if (event.key !== "Escape") return;
          event.stopPropagation();
          close();
        },
      },
      box,
      el("button", { type: "submit", class: "small primary" }, "Save"),
      button("Cancel", close, { class: "small" }),
    );
    setChildren(node, el("span", { class: "number" }, concept(id)), form, message);
    box.select();
    box.focus();
  }

  show();
  return node;
}
