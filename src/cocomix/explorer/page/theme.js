// Light or dark: the user's last choice, or the system's. A plain script, because it must run before the first paint.
(() => {
  const KEY = "cocomix-explorer-theme";
  const root = document.documentElement;

  function load() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // the browser may forbid storage
    }
  }

  function save(theme) {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // then the choice lasts until the page is closed
    }
  }

  const saved = load();
  if (saved === "light" || saved === "dark") root.dataset.theme = saved;

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
      save(root.dataset.theme);
    });
  });
})();
