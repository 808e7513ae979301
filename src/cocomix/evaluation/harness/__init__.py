"""EleutherAI's lm-evaluation-harness on cocomix models. Importing this registers the model type `cocomix` with it.

`python -m cocomix.evaluation.harness ARGUMENTS` is the harness's own command line with that model type registered.
Needs `pip install 'cocomix[eval]'`.
"""

from cocomix.utils.errors import CocomixError

try:
    import lm_eval
    import lm_eval.models.huggingface  # noqa: F401  # it needs accelerate, which lm-eval alone does not bring
except ModuleNotFoundError as error:
    raise CocomixError(
        f"tasks need lm-evaluation-harness ({error.name} is missing): pip install 'cocomix[eval]'"
    ) from None

from cocomix.evaluation.harness.model import CoCoMixLM
from cocomix.evaluation.harness.run import metrics, results_table, run_tasks
from cocomix.evaluation.harness.tasks import Tasks

__all__ = ["CoCoMixLM", "Tasks", "metrics", "results_table", "run_tasks"]
