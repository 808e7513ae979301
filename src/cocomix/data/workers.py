"""Encoding parts in several processes.

Processes come from a fork server that has imported the package once, so they share its memory; where there is none
they are spawned. They end when the one that started them does, however that ends.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cocomix.data.tokenize import Encoder, Job, encode_part, load_encoder
from cocomix.utils.errors import CocomixError

MOST = 32
"""processes unless more are asked for"""
WORTH = 16_000_000
"""bytes of text another process is started for, unless it is asked for"""


class Tongue(NamedTuple):
    """What a process needs to load its encoder."""

    folder: Path
    """the tokenizer's"""
    vocab_size: int
    eos_id: int

    def load(self) -> Encoder:
        """Read the tokenizer."""
        return load_encoder(self.folder, self.vocab_size, self.eos_id)


def cores() -> int:
    """Processor cores this process may use; the processes torchrun started on this machine share them."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def encode_parts(
    jobs: Sequence[Job], tongue: Tongue, workers: int | None, finished: Callable[[dict[str, Any]], None]
) -> None:
    """Do all jobs with at most `workers` processes; what they write does not depend on how many.

    Args:
        workers: None starts one a core, as far as there is enough to do. One is this process itself, with the
            encoder's own threads unless just one was asked for.
        finished: called with each part's record.

    Raises:
        CocomixError: a process died, or a document cannot be encoded.
    """
    if workers is None:
        size = sum(job.source.stat().st_size for job in jobs)
        processes = min(cores(), MOST, 1 + size // WORTH, len(jobs))
    else:
        processes = min(workers, len(jobs))
    if processes <= 1:
        encoder = tongue.load() if jobs else None
        with _threads(workers != 1):
            for job in jobs:
                assert encoder is not None
                finished(encode_part(encoder, job))
        return
    context = _context()
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(tongue,))
    try:
        for future in as_completed([pool.submit(_work, job) for job in jobs]):
            finished(future.result())
    except BrokenProcessPool:
        raise CocomixError(
            "a tokenizing process died, probably because memory ran out; lower tokens.workers and run the same command"
            " again, finished parts are kept"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


_encoder: Encoder | None = None


def _begin(tongue: Tongue) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = tongue.load()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    assert _encoder is not None
    return encode_part(_encoder, job)


@contextmanager
def _threads(many: bool) -> Iterator[None]:
    """Within: whether the encoder may use several threads."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if many else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
