// Light or dark: what was last chosen, else what the system prefers. A plain script, run before anything is painted.
(() => {
  const KEY = "cocomix-explorer-theme";
  const root = document.documentElement;

  function kept() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage can be forbidden
    }
  }

  function keep(theme) {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // the choice lasts as long as the page then
    }
  }

  const first = kept();
  if (first === "light" || first === "dark") root.dataset.theme = first;

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
      keep(root.dataset.theme);
    });
  });
})();
