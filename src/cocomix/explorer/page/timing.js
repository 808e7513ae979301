// When to ask, and whose answer still counts.

/** `work` after `ms` without another call; `.now(...)` at once, `.stop()` not at all; `.soon` says whether it waits. */
export function later(ms, work) {
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
  Object.defineProperty(call, "soon", { get: () => timer !== 0 });
  return call;
}

/** Of several requests only the newest counts: the others are cut off and their answers dropped. */
export class Latest {
  #controller = null;

  /** Runs `work(signal)`, then `good(answer)` or `bad(error)`, unless a later run or `stop` came in between. */
  async run(work, good, bad) {
    this.stop();
    const mine = new AbortController();
    this.#controller = mine;
    try {
      const answer = await work(mine.signal);
      if (!mine.signal.aborted) good(answer);
    } catch (error) {
      if (!mine.signal.aborted) bad(error);
    } finally {
      if (this.#controller === mine) this.#controller = null;
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
