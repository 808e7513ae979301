"""Run a task, or a group of tasks, on a loaded model; the results as rows and as a table."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import Any, NamedTuple
from unittest.mock import patch

import lm_eval
import lm_eval.api.metrics
import lm_eval.evaluator
import lm_eval.models.huggingface
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cocomix.evaluation.harness.model import CoCoMixLM
from cocomix.evaluation.harness.tasks import Tasks
from cocomix.utils.env import git_commit
from cocomix.utils.errors import CocomixError


class Metric(NamedTuple):
    """One result of one task."""

    task: str
    metric: str
    """the harness's name, with the filter unless that is "none", e.g. `acc` or `exact_match,strict-match`"""
    value: float
    stderr: float | None
    """the harness's standard error; None if it has none"""
    higher_is_better: bool | None


def metrics(results: dict[str, Any]) -> list[Metric]:
    """Every metric in the harness's results, in its order."""
    rows = []
    for task, figures in results["results"].items():
        better = results.get("higher_is_better", {}).get(task, {})
        for key, value in figures.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{name}_stderr,{filtered}")
            label = name if filtered == "none" else key
            stderr = float(error) if isinstance(error, int | float) else None
            rows.append(Metric(task, label, float(value), stderr, better.get(name)))
    return rows


def results_table(rows: Iterable[tuple[str, str, Metric]]) -> Table:
    """A table of (model, seed, metric) rows."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("task", "metric", "model", "seed", "value"):
        table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    for model, seed, metric in rows:
        arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
        error = "" if metric.stderr is None else f" ± {metric.stderr:.4f}"
        table.add_row(metric.task, metric.metric + arrow, model, seed, f"{metric.value:.4f}{error}")
    return table


simple_evaluate: Any = lm_eval.simple_evaluate  # the harness's deprecation wrapper hides its type


def run_tasks(
    model: CoCoMixLM,
    tasks: Tasks,
    name: str,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    log_samples: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any] | None:
    """The results of the harness's `simple_evaluate`; None in all processes but the first.

    The documents are divided among the processes of a torch.distributed group. The harness seeds the generators of
    Python, NumPy and torch with its defaults.

    Args:
        limit: use only this many documents of each task, from the start; for a quick try.
        num_fewshot: examples before each question; None: as many as the task says.
        log_samples: also return `samples`, with every request and response.
        progress: called with the rows done and the rows in all, of this process and the current kind of request.

    Raises:
        CocomixError: a task or its data is missing, or it generates more tokens than the model has room for.
    """
    model.progress = progress
    with _quiet():
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
    positions = model.max_length
    try:
        return simple_evaluate(
            model=model,
            tasks=_outermost(loaded),
            task_manager=tasks.manager,
            batch_size=model.batch_size,
            device=str(model.device),
            limit=limit,
            num_fewshot=num_fewshot,
            log_samples=log_samples,
        )
    except AssertionError as error:
        if "max tokens to generate" in str(error):
            raise CocomixError(
                f"the task {name} generates more tokens than the model's {positions} positions leave room for;"
                " leave it out for this model"
            ) from error
        raise


def _outermost(loaded: dict[str, Any]) -> list[Any]:
    """The requested groups and tasks: groups that are in no other group, and tasks that are in no group."""
    groups = loaded.get("groups", {})
    inner = {child for group in groups.values() for child in group.child_names}
    grouped = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    outer = [group for name, group in groups.items() if name not in inner]
    return outer + [task for name, task in loaded["tasks"].items() if name not in grouped]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the harness's progress bars, prints and warnings; the model reports progress."""
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        for module in (lm_eval.api.metrics, lm_eval.models.huggingface):
            stack.enter_context(patch.object(module, "print", lambda *_, **__: None, create=True))
        # The harness reads the commit of the working directory; the commit that measures is the package's.
        stack.enter_context(patch.object(lm_eval.evaluator, "get_git_commit_hash", git_commit))
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        yield
