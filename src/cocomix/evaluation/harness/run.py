"""Run one task, or a group of them, on a loaded model."""

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

# The harness's results as rows and as a small table.


class Metric(NamedTuple):
    """One figure of one task."""

    task: str
    metric: str
    """as the harness calls it, with its filter where that is not "none", e.g. `acc` or `exact_match,strict-match`"""
    value: float
    stderr: float | None
    """the harness's standard error; None where it has none"""
    higher_is_better: bool | None


def metrics(results: dict[str, Any]) -> list[Metric]:
    """Every figure in results of the harness, tasks in its order."""
    out = []
    for task, figures in results["results"].items():
        better = results.get("higher_is_better", {}).get(task, {})
        for key, value in figures.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{name}_stderr,{filtered}")
            shown = name if filtered == "none" else key
            known = float(error) if isinstance(error, int | float) else None
            out.append(Metric(task, shown, float(value), known, better.get(name)))
    return out


def results_table(rows: Iterable[tuple[str, str, Metric]]) -> Table:
    """A table of (model, seed, metric) rows."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("task", "metric", "model", "seed", "value"):
        table.add_column(heading, justify="right" if heading == "value" else "left", overflow="fold")
    for model, seed, one in rows:
        arrow = {True: " ↑", False: " ↓", None: ""}[one.higher_is_better]
        error = "" if one.stderr is None else f" ± {one.stderr:.4f}"
        table.add_row(one.task, one.metric + arrow, model, seed, f"{one.value:.4f}{error}")
    return table


simple_evaluate: Any = lm_eval.simple_evaluate  # its deprecation wrapper hides its type


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
    """What the harness's `simple_evaluate` returns, in its own layout; None in all processes but the first.

    Every process of a torch.distributed group takes its share of the documents. The harness seeds Python's, NumPy's
    and torch's generators with its defaults.

    Args:
        limit: use the first so many documents of each task; for a try only.
        num_fewshot: examples before each question; None: the task's own number.
        log_samples: also return `samples`, what was asked and answered.
        progress: told of rows run and rows there are, of this process's share of the kind of request that is on.

    Raises:
        CocomixError: a task or its data is missing, or it does not fit the model's length.
    """
    model.progress = progress
    with _quietly():
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
    """Groups that are in no other group, and tasks that are in none: what was asked for."""
    groups = loaded.get("groups", {})
    inner = {child for group in groups.values() for child in group.child_names}
    grouped = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    outer = [group for name, group in groups.items() if name not in inner]
    return outer + [task for name, task in loaded["tasks"].items() if name not in grouped]


@contextmanager
def _quietly() -> Iterator[None]:
    """Within: no bars, prints and warnings of the harness; progress is the model's to report."""
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        for module in (lm_eval.api.metrics, lm_eval.models.huggingface):
            stack.enter_context(patch.object(module, "print", lambda *_, **__: None, create=True))
        # It asks git about the folder one stands in; the commit that measured is the package's.
        stack.enter_context(patch.object(lm_eval.evaluator, "get_git_commit_hash", git_commit))
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        yield
