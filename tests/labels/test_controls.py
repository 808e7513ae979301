"""Controls as label sets: hashes against a loop and the objective `hash`; random labels; what is refused."""

import numpy as np
import pytest
import torch

from cocomix.data import TokenShards, write_shards
from cocomix.labels.controls import CONTROLS, HashLabels, hash_labels
from cocomix.model.build import Sizes, parameter_count
from cocomix.objectives import OBJECTIVES, CoCoMixObjective
from cocomix.objectives.hash import HashObjective
from cocomix.objectives.registry import build_student
from cocomix.pipeline.config import LabelConfig
from tests.helpers.every_objective import C, mixed


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    folder = tmp_path_factory.mktemp("shards") / "train"
    rng = np.random.default_rng(0)
    write_shards(folder, [rng.integers(1, 50, 60) for _ in range(5)], vocab_size=50, eos_id=0)
    return TokenShards.open(folder)


@pytest.mark.parametrize("name", ["hash", "hash_next"])
def test_hashes_of_the_current_and_the_next_token(shards: TokenShards, name: str) -> None:
    labels = CONTROLS[name].reader(None, shards, 8, 2, C, 1)
    windows, table = np.array([3, 0, 7]), hash_labels(50, 2, C)
    found, ids = labels.read(windows, 8), shards.windows(windows, 8)
    for b in range(3):
        for t in range(8):
            token = ids[b, t] if name == "hash" else ids[b, min(t + 1, 7)]
            expected = [-100, -100] if t in (0, 7) else table[token].tolist()
            assert found[b, t].tolist() == expected
    assert labels.labelled(windows).tolist() == [6, 6, 6]


@pytest.mark.parametrize("ahead", [False, True])
def test_the_label_set_is_what_the_objective_hash_trains_on(shards: TokenShards, ahead: bool) -> None:
    windows = np.array([1, 4])
    labels = torch.from_numpy(HashLabels(shards, 8, n_labels=2, n_concepts=C, ahead=ahead).read(windows, 8))
    ids, progress = torch.from_numpy(shards.windows(windows, 8)), torch.tensor(0.3)
    model = mixed()
    batch = {"input_ids": ids, "progress": progress}
    found = HashObjective(model, hash_labels(50, 2, C), ahead=ahead)(batch)
    assert torch.equal(found, CoCoMixObjective(model)(batch | {"concept_labels": labels}))


def test_random_labels_are_another_sets_at_other_places(shards: TokenShards) -> None:
    source = HashLabels(shards, 8, n_labels=2, n_concepts=C)
    windows = np.arange(shards.n_windows(8))
    moved = CONTROLS["random"].reader(source, shards, 8, 2, C, 0).read(windows, 8)
    plain = source.read(windows, 8)
    assert np.array_equal(np.bincount(moved[moved >= 0], minlength=C), np.bincount(plain[plain >= 0], minlength=C))
    assert (moved == plain).all(-1).mean() < 0.3


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"rule": "tapir"}, "there is no label rule 'tapir'; choose one of reference, exact"),
        ({"rule": "random"}, "name it with `of`"),
        ({"rule": "hash", "of": "exact"}, "leave `of` out"),
        ({"rule": "hash", "live": True}, "never stored"),
        ({"rule": "random", "of": "exact", "k": 3}, "have the k of the set exact"),
    ],
)
def test_what_does_not_fit_is_refused(raw: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LabelConfig.model_validate(raw)


def test_an_mlp_of_a_cocomix_students_size() -> None:
    shape = {"width": 16, "layers": 3, "heads": 2}
    concept = {"concept_layer": 1, "loss_weight": 0.1}
    students = {
        "cocomix": OBJECTIVES["cocomix"].model_validate(
            {"objective": "cocomix", "labels": "exact", "model": shape, "concept": concept}
        ),
        "mlp": OBJECTIVES["mlp"].model_validate(
            {"objective": "mlp", "model": shape, "mix": {"concept_layer": 1}, "match_parameters": "cocomix"}
        ),
    }
    sizes = {"cocomix": Sizes(50, 8, 96, 4, 0, 0), "mlp": Sizes(50, 8, 0, 0, 0, 0)}
    counts = {
        name: parameter_count(lambda name=name: build_student(students, name, sizes.__getitem__)) for name in sizes
    }
    model = build_student(students, "mlp", sizes.__getitem__)
    assert model.config.channel == "mlp" and model.config.num_concepts == 96  # as many units as concepts
    assert abs(counts["mlp"] - counts["cocomix"]) <= 16  # pre_bias is all that an MLP has not
