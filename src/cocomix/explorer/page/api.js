// The server's answers. Every failure is an `ApiError` whose message is a sentence to show.

const GONE = "The explorer's server does not answer; start it again with `cocomix explore`, then try again.";

/** What went wrong, in the server's words; status 0 where it did not answer at all. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(GONE, 0);
  }
  if (response.ok) return response;
  let sentence = `The server answered ${response.status} and no reason; look at the terminal it runs in.`;
  try {
    sentence = (await response.json()).error ?? sentence;
  } catch {
    // the answer was not its own; keep the sentence above
  }
  throw new ApiError(sentence, response.status);
}

function posted(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

async function json(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(GONE, 0);
  }
}

export async function get(path, params, signal) {
  const query = new URLSearchParams(Object.entries(params ?? {}).filter(([, value]) => value !== null && value !== ""));
  return json(await answer(`${path}?${query}`, { signal }));
}

export async function post(path, body, signal) {
  return json(await answer(path, posted(body, signal)));
}

/** The answer's lines as they come, each parsed. */
export async function* lines(path, body, signal) {
  const response = await answer(path, posted(body, signal));
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
    throw new ApiError("The stream broke off; see the terminal that `cocomix explore` runs in, then run it again.", 0);
  } finally {
    reader.cancel().catch(() => {}); // leaving early tells the server to stop
  }
}
