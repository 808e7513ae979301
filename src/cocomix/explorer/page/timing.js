// When to send a request, and whose answer still counts.

/** Calls `work` after `ms` without another call; `.now(...)` calls it at once, `.stop()` cancels; `.pending`. */
export function debounce(ms, work) {
  let timer = 0;
  const call = (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = 0;
      work(...args);
    }, ms);
  };
  call.stop = () => {
    clearTimeout(timer);
    timer = 0;
  };
  call.now = (...args) => {
    call.stop();
    return work(...args);
  };
  Object.defineProperty(call, "pending", { get: () => timer !== 0 });
  return call;
}

/** Of several requests only the newest counts: the others are aborted and their answers dropped. */
export class LatestRequest {
  #controller = null;

  /** Runs `work(signal)`, then `onanswer(answer)` or `onerror(error)`, unless a later run or `stop` came in between. */
  async run(work, onanswer, onerror) {
    this.stop();
    const controller = new AbortController();
    this.#controller = controller;
    try {
      const answer = await work(controller.signal);
      if (!controller.signal.aborted) onanswer(answer);
    } catch (error) {
      if (!controller.signal.aborted) onerror(error);
    } finally {
      if (this.#controller === controller) this.#controller = null;
    }
  }

  get busy() {
    return this.#controller !== null;
  }

  stop() {
    this.#controller?.abort();
    this.#controller = null;
  }
}
