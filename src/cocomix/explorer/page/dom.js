// Elements without markup: whatever text comes in becomes a text node, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const AS_PROPERTY = new Set(["value", "checked", "disabled", "hidden", "tabIndex", "selected"]);

/** An element. Props: `onclick` and such listen, `vars` sets CSS properties; the rest are attributes. */
export function el(tag, props, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "vars") setVars(node, value);
    else if (AS_PROPERTY.has(key)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...solid(children));
  return node;
}

function solid(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** CSS custom properties, through the object model: the content policy forbids style attributes. */
export function setVars(node, vars) {
  for (const [name, value] of Object.entries(vars)) node.style.setProperty(name, value);
}

/** `node` with these children only. */
export function put(node, ...children) {
  node.replaceChildren(...solid(children));
  return node;
}

/** A button. */
export function button(label, onclick, props) {
  return el("button", { type: "button", onclick, ...props }, label);
}

/** Grey lines where an answer will be. */
export function skeleton(lines, label = "Loading") {
  const widths = [92, 78, 85, 60, 88, 70];
  return el(
    "div",
    { class: "skeleton", role: "status", "aria-label": label },
    Array.from({ length: lines }, (_, at) => el("div", { vars: { "--w": `${widths[at % widths.length]}%` } })),
  );
}

/** What to do where there is nothing yet. */
export function empty(title, hint, ...more) {
  return el("div", { class: "empty" }, el("p", { class: "empty-title" }, title), el("p", null, hint), more);
}

/** What to do where a run has no student that predicts concepts. */
export function noConcepts() {
  return empty(
    "No student here predicts concepts",
    "Train one with the objective cocomix, or open another run with `cocomix explore RUN`; Compare takes any student.",
  );
}

/** An error's own sentence, and a way to try again. */
export function trouble(error, retry) {
  return el(
    "div",
    { class: "trouble", role: "alert" },
    el("p", null, error.message),
    retry && button("Try again", retry, { class: "small" }),
  );
}

/** Says something to people who listen rather than look. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}
