// Requests to the server. Every failure is an `ApiError` whose message can be shown. Paths are relative to the page's
// address, because a reverse proxy may show it below a prefix.

const NO_ANSWER = "The explorer's server does not answer; start it again with `cocomix explore`, then try again.";

/** The server's error message and HTTP status; the status is 0 if it did not answer. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(NO_ANSWER, 0);
  }
  if (response.ok) return response;
  let message = `The server answered with status ${response.status}; look at the terminal it runs in.`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // the answer is not the explorer's; keep the message above
  }
  throw new ApiError(message, response.status);
}

function postOptions(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(NO_ANSWER, 0);
  }
}

export async function get(path, params, signal) {
  const query = new URLSearchParams(Object.entries(params ?? {}).filter(([, value]) => value !== null && value !== ""));
  return json(await request(`${path}?${query}`, { signal }));
}

export async function post(path, body, signal) {
  return json(await request(path, postOptions(body, signal)));
}

/** The lines of a streamed answer as they arrive, each parsed. */
export async function* lines(path, body, signal) {
  const response = await request(path, postOptions(body, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      for (const part of parts) if (part) yield JSON.parse(part);
    }
    if (rest) yield JSON.parse(rest);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(
      "The stream was interrupted; look at the terminal of `cocomix explore`, then press Run again.",
      0,
    );
  } finally {
    reader.cancel().catch(() => {}); // cancelling tells the server to stop
  }
}
