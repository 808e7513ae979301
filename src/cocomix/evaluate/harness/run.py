"""Run one task, or a group of them, on a loaded model."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from lm_eval import simple_evaluate

from cocomix.errors import CocomixError
from cocomix.evaluate.harness.model import CoCoMixLM
from cocomix.evaluate.harness.tasks import Tasks


def run_tasks(
    model: CoCoMixLM,
    tasks: Tasks,
    name: str,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    log_samples: bool = False,
) -> dict[str, Any] | None:
    """What the harness's `simple_evaluate` returns, in its own layout; None in all processes but the first.

    Every process of a torch.distributed group takes its share of the documents. The harness seeds Python's, NumPy's
    and torch's generators with its defaults.

    Args:
        limit: use the first so many documents of each task; for a try only.
        num_fewshot: examples before each question; None: the task's own number.
        log_samples: also return `samples`, what was asked and answered.

    Raises:
        CocomixError: a task or its data is missing, or it does not fit the model's length.
    """
    with _bars_on_a_terminal_only():
        return _run(model, tasks, name, limit, num_fewshot, log_samples)


def _run(
    model: CoCoMixLM, tasks: Tasks, name: str, limit: int | None, num_fewshot: int | None, log_samples: bool
) -> dict[str, Any] | None:
    loaded = tasks.load(name)
    for task in loaded["tasks"].values():
        documents = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
        if documents < model.world_size:
            raise CocomixError(
                f"{task.task_name} has {documents} documents for {model.world_size} processes; use fewer processes"
            )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        return simple_evaluate(  # pyright: ignore[reportReturnType]
            model=model,
            tasks=_outermost(loaded),
            task_manager=tasks.manager,
            batch_size=model.batch_size,  # pyright: ignore[reportArgumentType]
            device=str(model.device),
            limit=limit,
            num_fewshot=num_fewshot,
            log_samples=log_samples,
        )
    except AssertionError as error:
        if "max tokens to generate" in str(error):
            raise CocomixError(
                f"the task {name} generates more tokens than the model's {model.max_length} positions leave room for;"
                " leave it out for this model"
            ) from error
        raise


def _outermost(loaded: dict[str, Any]) -> list[Any]:
    """Groups that are in no other group, and tasks that are in none: what was asked for."""
    groups = loaded.get("groups", {})
    inner = {child for group in groups.values() for child in group.child_names}
    grouped = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    outer = [group for name, group in groups.items() if name not in inner]
    return outer + [task for name, task in loaded["tasks"].items() if name not in grouped]


@contextmanager
def _bars_on_a_terminal_only() -> Iterator[None]:
    """Within: the harness's progress bars go to a terminal or nowhere, and what it prints goes along with them."""
    with ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(redirect_stdout(sys.stderr))
        yield
