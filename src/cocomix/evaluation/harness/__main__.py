"""`python -m cocomix.evaluation.harness`: the harness's command line, with the model type `cocomix`.

The harness has no entry point for other packages' model types, so ours must be imported first. Works under torchrun.
"""

import sys

from lm_eval.__main__ import cli_evaluate

import cocomix.evaluation.harness  # noqa: F401
from cocomix.utils.console import use_any_encoding
from cocomix.utils.distributed import distributed_session
from cocomix.utils.errors import CocomixError

if __name__ == "__main__":
    use_any_encoding()
    try:
        with distributed_session():
            cli_evaluate()
    except CocomixError as error:
        sys.exit(f"cocomix: {error}")
