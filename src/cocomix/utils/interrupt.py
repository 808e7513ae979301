"""Calls into native code that a Ctrl-C must not wait for.

Python answers a signal between two of its own instructions. A library that computes for minutes in one call keeps it
from doing so; such a call runs in a thread of its own, while the main thread waits where it can be woken.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def interruptible(
    call: Callable[[], Result], waiting: Callable[[], None] = lambda: None, *, every_seconds: float = 0.2
) -> Result:
    """What `call` returns or raises; a signal's exception leaves at once, and the call ends with the process.

    The call must release Python's lock while it computes, as Tokenizers, PyTorch and Arrow do. Outside the main thread,
    which signals never reach, it is made directly.

    Args:
        waiting: called every so often meanwhile, e.g. to report progress.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["result"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True, name="native call")
    thread.start()
    while thread.is_alive():
        thread.join(every_seconds)
        waiting()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
