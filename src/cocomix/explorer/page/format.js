// Numbers, tokens and concepts as people read them.

const WHOLE = new Intl.NumberFormat("en-GB");
const SHORT = new Intl.NumberFormat("en-GB", { notation: "compact", maximumSignificantDigits: 3 });
const MINUS = "\u2212";

export const count = (value) => WHOLE.format(value);
export const short = (value) => SHORT.format(value);

/** `digits` after the point, with a true minus; a dash for none. */
export function decimal(value, digits = 2) {
  return value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", MINUS);
}

/** The same with its sign. */
export function signed(value, digits = 2) {
  return value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + decimal(value, digits);
}

/** A share of 1 as a percentage, with as many digits as tell something. */
export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = share * 100;
  if (value === 0 || value >= 99.95) return `${value.toFixed(0)}%`;
  if (value < 0.01) return "<0.01%";
  return `${value.toFixed(value < 0.1 ? 2 : value < 10 ? 1 : 0)}%`;
}

export const concept = (number) => `c${number}`;

/** A concept's name, else its number. */
export const called = (number, name) => name || concept(number);

/** A token's text with what cannot be seen made visible; spaces stay. */
export function seen(token) {
  return token === "" ? "∅" : token.replaceAll("\n", "↵").replaceAll("\r", "␍").replaceAll("\t", "⇥");
}

// part of a character, and control characters but tab and line ends
const UNSHOWN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\ufffd]/;

/** The same for a lone token in a table: a space at its edge is shown too, and what has no sign goes by its number. */
export function alone(token, id = null) {
  if (id !== null && UNSHOWN.test(token)) return `#${id}`;
  return seen(token).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

export const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;
