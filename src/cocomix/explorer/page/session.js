// Exchanges the token in the opened address, #token=…, for a cookie that scripts cannot read.

import { post } from "./api.js";

const TOKEN = /^#token=([\w.~-]+)$/;

/** Signs in if the address has a token, and removes it from the address first, so that it is not copied along. */
export async function signIn() {
  const token = TOKEN.exec(location.hash)?.[1];
  if (token === undefined) return;
  history.replaceState(null, "", location.pathname);
  await post("api/session", { token });
}

// An address with a token that is opened where the page is open already only changes what stands after #.
addEventListener("hashchange", () => {
  if (TOKEN.test(location.hash)) location.reload();
});
