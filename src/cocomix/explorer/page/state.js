// The state of the page, kept in the address after `#` so that every view can be linked to: #read?text=…&concept=12.

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

/** For each view: parameter in the address -> key of the state. `concept` is shaded in Read and open in Concepts. */
const PARAMETERS = {
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
const RESET = new Set(["at", "concept", "open", "q"]); // reset to the default if the address lacks them
const MAX_LENGTH = 6000; // characters of one value, because addresses have limits

const text = (raw) => raw;
const integer = (raw) => (/^\d{1,9}$/.test(raw) ? Number(raw) : undefined);
const number = (raw) => (raw !== "" && Number.isFinite(Number(raw)) ? Number(raw) : undefined);
const READERS = {
  at: integer,
  concept: integer,
  open: integer,
  tokens: integer,
  seed: integer,
  temperature: number,
  steering: (raw) => {
    try {
      const items = JSON.parse(raw);
      return Array.isArray(items) ? items.filter(isItem) : undefined;
    } catch {
      return undefined;
    }
  },
};

/** Whether this has the form of a steering item; the server checks its numbers. */
function isItem(item) {
  return item !== null && typeof item === "object" && Number.isInteger(item.concept) && typeof item.do === "string";
}

const serialize = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

/** The values that an address names; `{}` if it names no view. */
export function parse(hash) {
  const short = /^#concept=(\d+)$/.exec(hash);
  const [view, query] = short ? ["concepts", `concept=${short[1]}`] : hash.slice(1).split(/\?(.*)/s);
  if (!Object.hasOwn(PARAMETERS, view)) return {};
  const params = new URLSearchParams(query);
  const values = { view };
  for (const [name, key] of Object.entries(PARAMETERS[view])) {
    const raw = params.get(name);
    const value = raw === null ? undefined : (READERS[key] ?? text)(raw);
    if (value !== undefined) values[key] = value;
    else if (RESET.has(key)) values[key] = DEFAULTS[key];
  }
  return values;
}

/** The address of a view with these values. Following it leaves values that are not given as they are. */
export function link(view, values) {
  const params = new URLSearchParams();
  for (const [name, key] of Object.entries(PARAMETERS[view])) {
    const value = values[key];
    if (value === undefined || value === null || value === "" || serialize(value).length > MAX_LENGTH) continue;
    if (serialize(value) !== serialize(DEFAULTS[key] ?? "")) params.set(name, serialize(value));
  }
  const query = params.toString();
  return `#${view}${query && "?"}${query}`;
}

/** The values and their listeners; changes go to the address and back. */
export class State {
  #listeners = [];
  #timer = 0;

  constructor() {
    this.now = { ...DEFAULTS, ...parse(location.hash) };
    // the address may have been replaced again, by the timer below, before the event arrives
    addEventListener("hashchange", (event) => this.set(parse(new URL(event.newURL).hash)));
  }

  /** Calls `listener` after a change of any of `keys`. */
  on(keys, listener) {
    this.#listeners.push({ keys, listener });
  }

  /** Changes values. The browser's Back button undoes a change that is a `step`. */
  set(patch, { step = false } = {}) {
    const changed = Object.keys(patch).filter((key) => serialize(patch[key]) !== serialize(this.now[key]));
    if (changed.length === 0) return;
    Object.assign(this.now, patch);
    clearTimeout(this.#timer);
    if (step) history.pushState(null, "", link(this.now.view, this.now));
    // browsers refuse an address that changes with every key press
    else this.#timer = setTimeout(() => history.replaceState(null, "", link(this.now.view, this.now)), 200);
    for (const { keys, listener } of this.#listeners) if (keys.some((key) => changed.includes(key))) listener();
  }
}
