"""Several label sets in one training: against a loop over windows and positions; resumed, cut up, on two processes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.data import TokenShards, write_shards
from cocomix.labels.controls import HashLabels
from cocomix.labels.schedule import (
    LabelPart,
    ScheduledLabels,
    WeightedLabels,
    describe_parts,
    label_phases,
    shares_of_training,
)
from cocomix.labels.store import LabelReader
from cocomix.objectives import OBJECTIVES, CoCoMixObjective
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.train.trainer import Trainer
from tests.helpers.distributed_programs import launch
from tests.helpers.every_objective import C, mixed

SEQ = 6


class Constant(LabelReader):
    """One label everywhere but in every third window, which has none in its first half."""

    n_labels = 2

    def __init__(self, label: int) -> None:
        self.label, self.where = label, f"label {label}"

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        labels = np.full((len(windows), seq_len, 2), self.label)
        labels[windows % 3 == 0, : seq_len // 2] = -100
        return labels

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        return np.where(windows % 3 == 0, SEQ - SEQ // 2, SEQ)


PARTS = [
    LabelPart(set="a", until=0.4),
    LabelPart(set="b", until=0.75, share=3),
    LabelPart(set="c", sign="signed", until=0.75, share=1),
    LabelPart(set="a"),
]
LABELS = (1, 2, 3, 4)


def scheduled(*, by_position: bool, seed: int = 7) -> ScheduledLabels:
    sources = [Constant(label) for label in LABELS]
    return ScheduledLabels(sources, PARTS, by_position=by_position, seq_len=SEQ, seed=seed)


def one(step: int, window: int, position: int, *, by_position: bool) -> int:
    """The label of one position by the definition."""
    if window % 3 == 0 and position < SEQ // 2:
        return -100
    progress = step / 100
    if progress < 0.4:
        return 1
    if progress >= 0.75:
        return 4
    draws = np.random.default_rng((7, step, window)).random(SEQ if by_position else 1)
    return 2 if draws[position if by_position else 0] < 0.75 else 3


@pytest.mark.parametrize("by_position", [False, True])
def test_labels_by_phase_and_by_share(by_position: bool) -> None:
    labels, windows = scheduled(by_position=by_position), np.array([5, 0, 11, 3, 8])
    for step in (0, 39, 40, 57, 74, 75, 99):
        labels.begin_step(step, 100)
        found = labels.read(windows, SEQ)
        expected = [[[one(step, w, t, by_position=by_position)] * 2 for t in range(SEQ)] for w in windows.tolist()]
        assert found.tolist() == expected
        assert labels.labelled(windows).tolist() == (found[..., 0] >= 0).sum(-1).tolist()
        resumed = scheduled(by_position=by_position)  # and another process, which reads a part of the batch
        resumed.begin_step(step, 100)
        assert np.array_equal(resumed.read(windows[2:], SEQ), found[2:])
    labels.begin_step(50, 100)
    many = np.array([w for w in range(3000) if w % 3])
    assert (labels.read(many, SEQ) == 2).mean() == pytest.approx(0.75, abs=0.03)
    before = labels.read(many, SEQ)
    labels.begin_step(51, 100)
    assert not np.array_equal(labels.read(many, SEQ), before)


@pytest.mark.parametrize("by_position", [False, True])
def test_weights_follow_the_source_of_each_label(by_position: bool) -> None:
    sources: list[LabelReader] = [Constant(label) for label in LABELS]
    sources[1] = WeightedLabels(sources[1], np.array([0, 0, 0.25, 0, 0], dtype=np.float32))
    labels = ScheduledLabels(sources, PARTS, by_position=by_position, seq_len=SEQ, seed=7)
    windows = np.array([4, 9, 2])
    labels.begin_step(60, 100)
    found = labels.read(windows, SEQ)
    expected = np.where(found == 2, 0.25, np.where(found == 3, 1, 0))  # 0 or 1 where there is no label: it never counts
    weights = labels.weights(windows, found)
    assert weights is not None and np.array_equal(weights[found >= 0], expected[found >= 0])
    assert scheduled(by_position=by_position).weights(windows, found) is None


def test_what_the_parts_come_to() -> None:
    assert [phase.until for phase in label_phases(PARTS)] == [0.4, 0.75, 1.0]
    assert shares_of_training(PARTS) == pytest.approx([0.4, 0.35 * 0.75, 0.35 * 0.25, 0.25])
    assert describe_parts(PARTS, "window") == "a until 40%, then b (75%) and c/signed (25%) by window until 75%, then a"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": [{"set": "a", "until": 0.4}]}, "without any after 40% of it"),
        ({"labels": []}, "leave the training without any"),
        ({"labels": [{"set": "a"}, {"set": "b", "until": 0.4}]}, "not in the order of their `until`"),
        ({"labels": [{"set": "a", "until": 1.4}, {"set": "b"}]}, "less than 1"),
        ({"labels": [{"set": "a"}], "sign": "signed"}, "give each part its own"),
        ({"labels": "a", "shuffled": True, "label_weights": "predictability"}, "which nothing predicts"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, words: str) -> None:
    raw = {"objective": "cocomix", "concept": {}, "model": {"layers": 3}}
    with pytest.raises(ValueError, match=words):
        OBJECTIVES["cocomix"].model_validate(raw | settings)


def training(home: Path, folder: str, stop_at: int | None = None, **settings: object) -> dict[str, torch.Tensor]:
    """Train on hashes of the current token, then on a mixture by position with those of the next one, then on these."""
    if not (home / "shards").exists():
        rng = np.random.default_rng(0)
        write_shards(home / "shards", [rng.integers(1, 50, 60) for _ in range(5)], vocab_size=50, eos_id=0)
    shards = TokenShards.open(home / "shards")
    current, following = (HashLabels(shards, 8, n_labels=2, n_concepts=C, ahead=ahead) for ahead in (False, True))
    parts = [LabelPart(set="c", until=0.4), LabelPart(set="c", until=0.7), LabelPart(set="n", until=0.7), PARTS[3]]
    weighted = WeightedLabels(following, np.linspace(0, 2, C).astype(np.float32))
    sources = [current, current, weighted, following]
    labels = ScheduledLabels(sources, parts, by_position=True, seq_len=8, seed=0)
    config = TrainConfig(batch_size=4, steps=8, learning_rate=1e-2, n_evals=0, checkpoint_seconds=1e-9)

    def progress(step: int, _total: int, _metrics: dict) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    objective = CoCoMixObjective(mixed(), until=0.9)
    data = BatchSource(shards, 8, labels)
    Trainer(objective, data, config.model_copy(update=settings), home / folder, progress=progress).run()
    return {name: tensor.clone() for name, tensor in objective.trainable().state_dict().items()}


def test_stopped_and_resumed_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = training(tmp_path, "whole")
    for stop in (4, 6):
        with pytest.raises(KeyboardInterrupt):
            training(tmp_path, "stopped", stop)
    resumed = training(tmp_path, "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    cut = training(tmp_path, "cut", micro_batch_size=1)
    assert all((whole[name] - cut[name]).abs().max() < 1e-4 for name in whole)


@pytest.mark.long
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = training(tmp_path, "one")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from cocomix.utils.distributed import distributed_session, rank\n"
        "from tests.labels.test_schedule import training\n"
        "home = Path(sys.argv[1])\n"
        "with distributed_session():\n"
        "    torch.save(training(home, 'two'), home / f'rank{rank()}.pt')\n"
    )
    launch(2, str(program), str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in one)
    assert all((one[name] - first[name]).abs().max() < 1e-4 for name in one)
