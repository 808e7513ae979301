// Building elements. Text always becomes a text node, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "tabIndex", "selected"]);

/** An element. Of its props, `onclick` and the like are listeners, `vars` are CSS properties, the rest attributes. */
export function el(tag, props, ...children) {
  return build(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props, ...children) {
  return build(document.createElementNS(SVG, tag), props, children);
}

function build(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "vars") setVars(node, value);
    else if (PROPERTIES.has(key)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...flatten(children));
  return node;
}

function flatten(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Sets CSS properties by script, because the content security policy forbids style attributes. */
export function setVars(node, vars) {
  for (const [name, value] of Object.entries(vars)) node.style.setProperty(name, value);
}

/** Replaces the children of `node`. */
export function setChildren(node, ...children) {
  node.replaceChildren(...flatten(children));
  return node;
}

/** A button. */
export function button(label, onclick, props) {
  return el("button", { type: "button", onclick, ...props }, label);
}

/** Grey lines in place of an answer that is on its way. */
export function skeleton(lines, label = "Loading") {
  const widths = [92, 78, 85, 60, 88, 70];
  return el(
    "div",
    { class: "skeleton", role: "status", "aria-label": label },
    Array.from({ length: lines }, (_, line) => el("div", { vars: { "--w": `${widths[line % widths.length]}%` } })),
  );
}

/** Says that there is nothing to show, and what to do. */
export function empty(title, hint, ...more) {
  return el("div", { class: "empty" }, el("p", { class: "empty-title" }, title), el("p", null, hint), more);
}

/** Says what to do if no student of the run predicts concepts. */
export function noConcepts() {
  return empty(
    "No student here predicts concepts",
    "Train one with the objective cocomix, or open another run with `cocomix explore RUN`. Compare takes any student.",
  );
}

/** An error's message, and a button to try again. */
export function errorBox(error, retry) {
  return el(
    "div",
    { class: "error-box", role: "alert" },
    el("p", null, error.message),
    retry && button("Try again", retry, { class: "small" }),
  );
}

/** Tells users of screen readers. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}
