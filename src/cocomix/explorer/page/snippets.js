// The steering setting for use elsewhere, as a command, as Python or as a small file; and back from a file or a line.

import { post } from "./api.js";
import { announce, button, el, setChildren } from "./dom.js";
import { debounce, LatestRequest } from "./timing.js";

const FILE = "steering.json";

/** `setting()` is the request that the server takes; `apply(steering)` gets a setting that was opened or typed. */
export function snippetBox({ setting, apply }) {
  const requests = new LatestRequest();
  let snippets = null; // the server's {cli, python, json}
  let refused = false; // whether the message says why there are no snippets
  const cli = el("code", { class: "line", tabindex: "0", "aria-label": "Command line" });
  const message = el("p", { class: "small-text soft", role: "status" });
  const file = el("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: openFile });
  const line = el("input", {
    type: "text",
    placeholder: "c12=+4,c7:off",
    "aria-label": "Steering line",
    spellcheck: "false",
  });

  const refresh = debounce(120, () => {
    requests.run(
      (signal) => post("api/steering", setting(), signal),
      (answer) => {
        snippets = answer;
        cli.textContent = answer.cli;
        if (refused) showMessage("");
        refused = false;
      },
      (error) => {
        snippets = null;
        refused = true;
        cli.textContent = "";
        showMessage(error.message, true);
      },
    );
  });

  function showMessage(text, bad = false) {
    setChildren(message, text);
    message.classList.toggle("bad", bad);
  }

  async function copy(key, label) {
    if (snippets === null) return;
    try {
      await navigator.clipboard.writeText(snippets[key]);
      showMessage(`Copied ${label}.`);
      announce(`copied ${label}`);
    } catch {
      // browsers have no clipboard away from localhost, or forbid it: select the text, to be copied by hand
      cli.textContent = snippets[key];
      getSelection().selectAllChildren(cli);
      showMessage("The browser does not allow copying here; press Ctrl+C to copy the selected text.");
    }
  }

  function save() {
    if (snippets === null) return;
    const address = URL.createObjectURL(new Blob([snippets.json], { type: "application/json" }));
    el("a", { href: address, download: FILE }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
    showMessage(`Saved ${FILE}.`);
  }

  async function openFile() {
    const [chosen] = file.files;
    file.value = "";
    if (chosen) await use(await chosen.text(), `Opened ${chosen.name}.`);
  }

  /** Applies the setting in `text`; false if the server cannot read it. */
  async function use(text, success) {
    try {
      const { steering } = await post("api/steering/read", { text });
      apply(steering);
      refresh();
      showMessage(success);
      return true;
    } catch (error) {
      showMessage(error.message, true);
      return false;
    }
  }

  const node = el(
    "div",
    { class: "snippets" },
    cli,
    el(
      "div",
      { class: "actions" },
      button("Copy command", () => copy("cli", "the command"), { class: "small" }),
      button("Copy Python", () => copy("python", "the Python code"), { class: "small" }),
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
          if (await use(line.value, "Setting applied.")) line.value = "";
        },
      },
      line,
      el("button", { type: "submit", class: "small" }, "Use line"),
    ),
    message,
  );
  return { node, refresh };
}
