"""Measurements sharded over processes give what one process gives."""

import json
from pathlib import Path

import pytest

from tests.evaluation.test_evaluate import measured
from tests.helpers.distributed_programs import launch, program

BODY = """
import json
from tests.evaluation.test_evaluate import measured
figures = measured(home, sharded=True)
(home / f"rank{rank()}.json").write_text(json.dumps(figures))
"""


def test_three_processes_divide_four_batches(tmp_path: Path) -> None:
    alone = measured(tmp_path, sharded=False)
    launch(3, program(tmp_path, BODY))
    for rank in range(3):
        figures = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert figures["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-12)
        assert figures["recall"] == alone["recall"]
        certificate = figures["certificate"]
        assert certificate["windows"] == alone["certificate"]["windows"] == 8
        for name, variant in alone["certificate"]["variants"].items():
            for figure in ("loss", "difference", "ci95"):
                assert certificate["variants"][name][figure] == pytest.approx(variant[figure], rel=1e-6, abs=1e-7)
