// What a concept is called, and a way to call it something else, in place.

import { post } from "./api.js";
import { announce, button, el, put } from "./dom.js";
import { called, concept } from "./format.js";

/** `onname(about)` after it was renamed. */
export function nameplate({ concept: id, about: first }, model, onname) {
  let about = first;
  const plate = el("div", { class: "nameplate" });

  function shown() {
    put(
      plate,
      el("span", { class: "number" }, concept(id)),
      el("h2", null, about.name ?? el("span", { class: "soft" }, "no name")),
      about.edited && el("span", { class: "badge" }, "edited"),
      button("Rename", edit, { class: "small", "aria-label": `Rename ${called(id, about.name)}` }),
      !about.name && about.why && el("p", { class: "soft why" }, about.why),
    );
  }

  function edit() {
    const box = el("input", {
      type: "text",
      value: about.name ?? "",
      "aria-label": `Name of concept ${id}`,
      maxlength: "120",
    });
    const said = el("p", { class: "soft why" }, about.edited ? "Leave it empty to take the found name back." : "");
    const leave = () => {
      shown();
      plate.querySelector("button").focus();
    };
    const keep = async () => {
      try {
        about = await post("/api/name", { model, concept: id, name: box.value.trim() });
        onname(about);
        announce(`named ${about.name ?? "nothing"}`);
        leave();
      } catch (error) {
        put(said, error.message);
        said.classList.add("bad");
      }
    };
    const form = el(
      "form",
      {
        class: "rename",
        onsubmit: (event) => {
          event.preventDefault();
          keep();
        },
        onkeydown: (event) => {
          if (event.key !== "Escape") return;
          event.stopPropagation();
          leave();
        },
      },
      box,
      el("button", { type: "submit", class: "small primary" }, "Keep"),
      button("Cancel", leave, { class: "small" }),
    );
    put(plate, el("span", { class: "number" }, concept(id)), form, said);
    box.select();
    box.focus();
  }

  shown();
  return plate;
}
