"""A clock that stands still while this process is stopped: SIGSTOP, Ctrl-Z, a batch system that suspends a job.

A thread looks at the time every half second. Where two looks lie seconds apart and the process used no processor time
in between, it was not running: a busy machine delays a thread by far less, and a call that blocks the interpreter
computes.
"""

import os
import threading
import time

TICK_SECONDS, LONGEST_DELAY, BUSY_SHARE = 0.5, 2.0, 0.1


class ActiveClock:
    """Seconds in which this process could run; only differences mean something."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._stopped = 0.0
        self._started = False
        self._last, self._used = time.monotonic(), time.process_time()

    def stopped(self) -> float:
        """Seconds this process has been stopped for since the clock was first read."""
        self.seconds()
        return self._stopped

    def seconds(self) -> float:
        """The clock's reading."""
        if not self._started:
            self._started = True
            self._last, self._used = time.monotonic(), time.process_time()
            threading.Thread(target=self._tick, daemon=True, name="active-clock").start()
        return self._look()

    def _tick(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            self._look()

    def _look(self) -> float:
        with self._lock:
            now, used = time.monotonic(), time.process_time()
            gap = now - self._last - TICK_SECONDS
            if gap > LONGEST_DELAY and used - self._used < BUSY_SHARE * gap:
                self._stopped += gap
            self._last, self._used = now, used
            return now - self._stopped


CLOCK = ActiveClock()
