// A setting to take along: as a command, as Python, as a small file, and back.

import { post } from "./api.js";
import { announce, button, el, put } from "./dom.js";
import { Latest, later } from "./timing.js";

const FILE = "steering.json";

/** `ask()` is the setting as the server wants it; `take(steering)` gets one that was opened or typed. */
export function share({ ask, take }) {
  const asking = new Latest();
  let refused = false; // what is said is why the setting has no words
  let words = null; // the server's {cli, python, json}
  const cli = el("code", { class: "line", tabindex: "0", "aria-label": "Command line" });
  const said = el("p", { class: "small-text soft", role: "status" });
  const file = el("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: opened });
  const typed = el("input", {
    type: "text",
    placeholder: "c12=+4,c7:off",
    "aria-label": "Steering line",
    spellcheck: "false",
  });

  const refresh = later(120, () => {
    asking.run(
      (signal) => post("/api/steering", ask(), signal),
      (answer) => {
        words = answer;
        cli.textContent = answer.cli;
        if (refused) tell("");
        refused = false;
      },
      (error) => {
        words = null;
        refused = true;
        cli.textContent = "";
        tell(error.message, true);
      },
    );
  });

  function tell(text, bad = false) {
    put(said, text);
    said.classList.toggle("bad", bad);
  }

  async function copy(key, what) {
    if (words === null) return;
    try {
      await navigator.clipboard.writeText(words[key]);
      tell(`Copied ${what}.`);
      announce(`copied ${what}`);
    } catch {
      // no clipboard away from localhost or where it is forbidden: show it, marked, to be copied by hand
      cli.textContent = words[key];
      getSelection().selectAllChildren(cli);
      tell("The browser allows no copying here; press Ctrl+C now.");
    }
  }

  function save() {
    if (words === null) return;
    const address = URL.createObjectURL(new Blob([words.json], { type: "application/json" }));
    el("a", { href: address, download: FILE }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
    tell(`Saved ${FILE}.`);
  }

  async function opened() {
    const [chosen] = file.files;
    file.value = "";
    if (chosen) await read(await chosen.text(), `Opened ${chosen.name}.`);
  }

  async function read(text, done) {
    try {
      const { steering } = await post("/api/steering/read", { text });
      take(steering);
      refresh.stop();
      refresh();
      tell(done);
      return true;
    } catch (error) {
      tell(error.message, true);
      return false;
    }
  }

  const node = el(
    "div",
    { class: "share" },
    cli,
    el(
      "div",
      { class: "actions" },
      button("Copy command", () => copy("cli", "the command"), { class: "small" }),
      button("Copy Python", () => copy("python", "the Python"), { class: "small" }),
      button("Save file", save, { class: "small" }),
      button("Open file", () => file.click(), { class: "small" }),
      file,
    ),
    el(
      "form",
      {
        class: "line-form",
        onsubmit: async (event) => {
          event.preventDefault();
          if (await read(typed.value, "Taken over.")) typed.value = "";
        },
      },
      typed,
      el("button", { type: "submit", class: "small" }, "Use line"),
    ),
    said,
  );
  return { node, refresh };
}
