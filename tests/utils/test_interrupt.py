"""A native call in a thread of its own: results and errors come back, and a signal need not wait for it."""

import os
import signal
import threading

import pytest

from cocomix.utils.interrupt import interruptible


def test_results_and_errors_come_back() -> None:
    calls: list[int] = []
    assert interruptible(lambda: threading.Event().wait(0.2) or 7, lambda: calls.append(1), every_seconds=0.01) == 7
    assert len(calls) > 1
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


def test_a_signal_is_answered_while_the_call_goes_on() -> None:
    released, ended = threading.Event(), threading.Event()

    def call() -> None:
        released.wait()
        ended.set()

    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        interruptible(call)
    assert not ended.is_set()
    released.set()


def test_outside_the_main_thread_it_is_called_directly() -> None:
    names: list[str] = []
    thread = threading.Thread(target=lambda: interruptible(lambda: names.append(threading.current_thread().name)))
    thread.start()
    thread.join()
    assert names == [thread.name]
