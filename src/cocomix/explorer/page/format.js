// Numbers, tokens and concepts as text.

const WHOLE = new Intl.NumberFormat("en-GB");
const SHORT = new Intl.NumberFormat("en-GB", { notation: "compact", maximumSignificantDigits: 3 });
const MINUS = "\u2212";

export const count = (value) => WHOLE.format(value);
export const short = (value) => SHORT.format(value);

/** `digits` after the point, with a true minus; a dash for none. */
export function decimal(value, digits = 2) {
  return value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", MINUS);
}

/** The same with a sign. */
export function signed(value, digits = 2) {
  return value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + decimal(value, digits);
}

/** Nats with a sign, and a digit more where they are few. */
export const nats = (value) => signed(value, Math.abs(value) < 0.1 ? 3 : 2);

/** A share (0 to 1) as a percentage, with the digits that matter. */
export function percent(share) {
  if (share === null || share === undefined) return "–";
  const value = share * 100;
  if (value === 0 || value >= 99.95) return `${value.toFixed(0)}%`;
  if (value < 0.01) return "<0.01%";
  return `${value.toFixed(value < 0.1 ? 2 : value < 10 ? 1 : 0)}%`;
}

export const concept = (number) => `c${number}`;

/** A concept's name, or its number if it has none. */
export const nameOrNumber = (number, name) => name || concept(number);

/** A token's text with line ends and tabs made visible; spaces stay. */
export function visible(token) {
  return token === "" ? "∅" : token.replaceAll("\n", "↵").replaceAll("\r", "␍").replaceAll("\t", "⇥");
}

// parts of characters, and control characters except tab and line ends
const UNPRINTABLE = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\ufffd]/;

/** A token in a table: spaces at its edges are shown, too, and an unprintable token is shown by its id. */
export function tokenLabel(token, id = null) {
  if (id !== null && UNPRINTABLE.test(token)) return `#${id}`;
  return visible(token).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
