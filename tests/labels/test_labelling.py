"""Labelling a split: the same bytes from one process or two, from one go or after a kill; signs share a pass."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.labels import LabelStore, attribute_active, select_active
from cocomix.labels.labeller import contiguous_runs
from cocomix.labels.store import MARKS, read_marks
from cocomix.utils.errors import CocomixError, Interrupted
from tests.helpers.labeled_tokens import (
    BATCH,
    SEQ,
    SIGNS,
    WINDOWS,
    K,
    autoencoder,
    contents,
    corpus,
    in_two_processes,
    label,
    label_logits,
    teacher,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus labelled by one process, in `whole`."""
    folder = tmp_path_factory.mktemp("labels")
    label(folder, "whole")
    return folder


def test_labels_equal_direct_attribution(home: Path) -> None:
    figures = label(home, "whole")  # finished: figures alone
    shards = corpus(home / "s")
    assert shards.n_windows(SEQ) == WINDOWS
    ids = torch.from_numpy(shards.windows(np.arange(WINDOWS), SEQ))
    model, sae = teacher(), autoencoder()
    for sign in SIGNS:
        active = [attribute_active(model, sae, part, layer=1, rule="exact", sign=sign) for part in ids.split(BATCH)]
        chosen = [select_active(part, K) for part in active]
        store = LabelStore.open(home / "whole" / sign, expect={"tokens": shards.fingerprint, "sign": sign})
        expected = torch.cat([part.targets() for part in chosen]).numpy()
        assert np.array_equal(store.read(np.arange(WINDOWS), SEQ), expected)
        share = torch.cat([part.valid for part in chosen]).double().mean().item()
        assert figures["valid_share"][sign] == pytest.approx(share) and 0.1 < share < 1


@pytest.mark.parametrize("end", ["error", "signal"])
def test_a_stopped_run_goes_on_to_the_same_bytes(home: Path, end: str) -> None:
    steps: list[int] = []

    def stop(step: int, _total: int, _metrics: dict) -> None:
        if step == 40:
            if end == "error":
                raise KeyError
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyError if end == "error" else Interrupted):
        label(home, end, stop)
    label(home, end, lambda step, total, _metrics: steps.append(total))
    assert len(steps) == steps[0] == -(-(WINDOWS - 40 * BATCH) // BATCH)
    assert contents(home / end) == contents(home / "whole")


def test_a_kill_while_a_store_is_being_created_costs_nothing(home: Path) -> None:
    begun = home / "creating" / SIGNS[0]
    begun.mkdir(parents=True)
    (begun / "ids-00000.bin").write_bytes(b"half")
    label(home, "creating")
    assert contents(home / "creating") == contents(home / "whole")


def test_two_processes_write_what_one_does(home: Path) -> None:
    """Also the rest of what one process began, and the teacher's logits, whose scores are compared to the last bit."""
    label_logits(home, "logits")

    def stop(step: int, _total: int, _metrics: dict) -> None:
        if step == 50:
            raise KeyError

    with pytest.raises(KeyError):
        label(home, "begun", stop)
    done = in_two_processes(
        home,
        "import os",
        "rank = os.environ['RANK']",
        "seen = []",
        "label(home, 'two', lambda step, total, _: seen.append(total))",
        "label(home, 'begun')",
        "label_logits(home, 'logits_two')",
        "(home / f'batches{rank}').write_text(str(len(seen)))",
    )
    assert done.returncode == 0, done.stderr
    assert contents(home / "two") == contents(home / "begun") == contents(home / "whole")
    assert contents(home / "logits_two") == contents(home / "logits")
    batches = [int((home / f"batches{rank}").read_text()) for rank in (0, 1)]
    assert min(batches) > 0.4 * sum(batches)
    store = LabelStore.open(home / "logits" / "top")
    windows = np.array([0, 399, 400, WINDOWS - 1])
    ids = torch.from_numpy(corpus(home / "s").windows(windows, SEQ))
    expected = teacher()(ids).logits.log_softmax(-1).topk(K)
    assert np.array_equal(store.read(windows, SEQ), expected.indices.numpy())
    assert np.allclose(store.read_scores(windows, SEQ), expected.values.detach().numpy(), atol=1e-5)


def test_two_processes_killed_and_resumed_by_one(home: Path) -> None:
    done = in_two_processes(home, "label(home, 'killed', killed_at(9, rank=1))")
    assert done.returncode == -signal.SIGKILL
    marks = read_marks(home / "killed" / SIGNS[0])
    written = sum(mark.count for mark in marks)
    assert len({path.name for path in (home / "killed" / SIGNS[0] / MARKS).iterdir()}) == 2
    assert 9 * BATCH <= written < WINDOWS
    totals: list[int] = []
    label(home, "killed", lambda _step, total, _metrics: totals.append(total))
    # What was marked in both sets of labels is not done again.
    assert totals[0] <= -(-(WINDOWS - written + BATCH) // BATCH)
    assert contents(home / "killed") == contents(home / "whole")


def test_a_begun_store_of_other_labels_is_refused(home: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        label(home, "other", stop)
    with pytest.raises(CocomixError, match="begun with other settings"):
        label(home, "other", lineage={"tokens": "other"})


def test_runs() -> None:
    windows = np.array([3, 4, 5, 9, 11, 12])
    assert [windows[run].tolist() for run in contiguous_runs(windows)] == [[3, 4, 5], [9], [11, 12]]
