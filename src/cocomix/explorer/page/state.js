// What is chosen, kept in the address after `#` so that every view can be linked to: #read?text=…&concept=12.

const DEFAULTS = {
  view: "read",
  model: null,
  text: null,
  at: null,
  concept: null,
  open: null,
  q: "",
  sort: "predicted",
  prompt: null,
  steering: [],
  tokens: 48,
  temperature: 0.8,
  seed: 0,
  left: null,
  right: null,
};

/** Of each view: parameter in the address -> what it holds; `concept` is the shaded one in Read, else the open one. */
const SHOWN = {
  read: { model: "model", text: "text", at: "at", concept: "concept" },
  concepts: { model: "model", concept: "open", q: "q", sort: "sort" },
  steer: {
    model: "model",
    prompt: "prompt",
    steering: "steering",
    tokens: "tokens",
    temperature: "temperature",
    seed: "seed",
  },
  compare: { left: "left", right: "right", text: "text", at: "at" },
};
const DROPPED = new Set(["at", "concept", "open", "q"]); // an address without these means that there is none
const LONGEST = 6000; // characters of one value; addresses have limits

const text = (raw) => raw;
const whole = (raw) => (/^\d{1,9}$/.test(raw) ? Number(raw) : undefined);
const real = (raw) => (raw !== "" && Number.isFinite(Number(raw)) ? Number(raw) : undefined);
const READERS = {
  at: whole,
  concept: whole,
  open: whole,
  tokens: whole,
  seed: whole,
  temperature: real,
  steering: (raw) => {
    try {
      const items = JSON.parse(raw);
      return Array.isArray(items) ? items.filter(isItem) : undefined;
    } catch {
      return undefined;
    }
  },
};

/** Whether it has a steering item's form; the server judges its numbers. */
function isItem(item) {
  return item !== null && typeof item === "object" && Number.isInteger(item.concept) && typeof item.do === "string";
}

const written = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

/** The values an address names; `{}` for none it knows. */
export function parse(hash) {
  const short = /^#concept=(\d+)$/.exec(hash);
  const [view, query] = short ? ["concepts", `concept=${short[1]}`] : hash.slice(1).split(/\?(.*)/s);
  if (!Object.hasOwn(SHOWN, view)) return {};
  const params = new URLSearchParams(query);
  const values = { view };
  for (const [name, key] of Object.entries(SHOWN[view])) {
    const raw = params.get(name);
    const value = raw === null ? undefined : (READERS[key] ?? text)(raw);
    if (value !== undefined) values[key] = value;
    else if (DROPPED.has(key)) values[key] = DEFAULTS[key];
  }
  return values;
}

/** The address of a view with these values; what is not given stays as it is when the link is followed. */
export function link(view, values) {
  const params = new URLSearchParams();
  for (const [name, key] of Object.entries(SHOWN[view])) {
    const value = values[key];
    if (value === undefined || value === null || value === "" || written(value).length > LONGEST) continue;
    if (written(value) !== written(DEFAULTS[key] ?? "")) params.set(name, written(value));
  }
  const query = params.toString();
  return `#${view}${query && "?"}${query}`;
}

/** The values, who wants to know of changes, and the address in step. */
export class State {
  #listeners = [];
  #timer = 0;

  constructor() {
    this.now = { ...DEFAULTS, ...parse(location.hash) };
    addEventListener("hashchange", () => this.set(parse(location.hash)));
  }

  /** Calls `listener` after any of `keys` changed. */
  on(keys, listener) {
    this.#listeners.push({ keys, listener });
  }

  /** Changes values; a `step` is one that the browser's Back button takes back. */
  set(patch, { step = false } = {}) {
    const changed = Object.keys(patch).filter((key) => written(patch[key]) !== written(this.now[key]));
    if (changed.length === 0) return;
    Object.assign(this.now, patch);
    clearTimeout(this.#timer);
    if (step) history.pushState(null, "", link(this.now.view, this.now));
    // browsers refuse an address that changes with every key
    else this.#timer = setTimeout(() => history.replaceState(null, "", link(this.now.view, this.now)), 200);
    for (const { keys, listener } of this.#listeners) if (keys.some((key) => changed.includes(key))) listener();
  }
}
