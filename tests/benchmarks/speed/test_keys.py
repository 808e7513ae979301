"""From raw seconds to ratios, shares and slopes: made-up measurements against plain loops."""

import math
import random
from statistics import median
from typing import Any

import pytest
import torch

from benchmarks.speed.keys import (
    KEYS,
    Bar,
    all_keys,
    bar_of,
    matmul_peak,
    on_gpu,
    peak_shares,
    slope,
    slopes,
    waiting_shares,
)
from benchmarks.speed.labelling import agreement
from benchmarks.speed.students import MIXINGS
from cocomix.labels import ConceptLabels

ROUNDS = 5


def contestants(rng: random.Random, *names: str, flops: float | None = None, laps: tuple[str, ...] = ()) -> dict:
    def about(name: str) -> dict[str, Any]:
        parts = {lap: [rng.uniform(1, 9) for _ in range(ROUNDS)] for lap in laps}
        seconds = [sum(values) + 1 for values in zip(*parts.values(), strict=True)] if laps else None
        precision = "bf16" if name.endswith("bf16") else "fp32"
        return {
            "seconds": seconds or [rng.uniform(1, 9) for _ in range(ROUNDS)],
            "laps": parts,
            "flops": flops,
            "precision": precision,
        }

    return {"contestants": {name: about(name) for name in names}, "missing": {}}


@pytest.fixture
def raw() -> dict[str, Any]:
    rng = random.Random(0)
    students = [f"{name} fp32" for name in ("gpt2", "cocomix", "dense")]
    step = contestants(
        rng, *students, "gpt2 bf16", "cocomix bf16", flops=7e9, laps=("data", "forward_backward", "update")
    )
    step["contestants"] |= contestants(rng, "dense labels fp32")["contestants"]
    rules = [f"{rule} {precision}" for rule in ("reference", "exact") for precision in ("fp32", "bf16")]
    kinds = ("step", "forward_backward", "before")
    return {
        "peak": contestants(rng, "8 fp32", "16 fp32", "8 bf16", flops=5e12),
        "step": step,
        "memory": {"bytes": {name: {kind: [rng.uniform(1, 9), 2.0] for kind in kinds} for name in students}},
        "mixing": contestants(rng, *(f"{name} fp32" for name in MIXINGS))
        | {"bytes": {name: rng.randint(1, 9) for name in MIXINGS}},
        "labelling": contestants(rng, *rules, "dense fp32") | {"agreement": {"reference": {"labels": 1.0}}},
        "generate": contestants(rng, "gpt2 x1", "cocomix x1", "gpt2 x8", "cocomix x8"),
        "sae": contestants(rng, "cocomix", "saelens dense", "saelens sparse", "sparsify"),
        "growth": {
            "axes": {"batch": [{"at": at, "seconds": {"a": [at**1.5] * 3, "b": [7.0] * 3}} for at in (1, 2, 4)]}
        },
        "gpu": {"sizes": {"69m": {"tokens": 2048, "flops": 1e12, "seconds": [2.0, 1.0, 4.0], "bytes": 5}}},
    }


def by_hand(raw: dict[str, Any], group: str, above: str, below: str) -> list[float]:
    found = raw[group]["contestants"]
    return [found[above]["seconds"][i] / found[below]["seconds"][i] for i in range(ROUNDS)]


@pytest.mark.parametrize(
    ("key", "group", "above", "below"),
    [
        ("step_vs_gpt2", "step", "cocomix fp32", "gpt2 fp32"),
        ("labelling_vs_dense", "labelling", "dense fp32", "reference fp32"),
        ("labelling_bf16_vs_dense", "labelling", "dense fp32", "reference bf16"),
        ("exact_vs_reference_rule", "labelling", "exact fp32", "reference fp32"),
        ("generate_vs_gpt2", "generate", "cocomix x1", "gpt2 x1"),
        ("bf16_gain", "step", "cocomix fp32", "cocomix bf16"),
        ("residual_vs_bare", "mixing", "residual fp32", "bare fp32"),
        ("scaled_vs_bare", "mixing", "scaled fp32", "bare fp32"),
        ("residual_scaled_vs_bare", "mixing", "residual scaled fp32", "bare fp32"),
    ],
)
def test_a_ratio_is_that_of_its_two_contestants(raw: dict, key: str, group: str, above: str, below: str) -> None:
    found, runs = all_keys(raw)[key], by_hand(raw, group, above, below)
    assert found["runs"] == runs
    assert found["value"] == median(runs) and found["spread"] == [min(runs), max(runs)]


def test_the_references_step_is_its_student_and_its_labelling(raw: dict) -> None:
    found = raw["step"]["contestants"]
    student, labels, ours = (found[name]["seconds"] for name in ("dense fp32", "dense labels fp32", "cocomix fp32"))
    runs = all_keys(raw)["whole_step_vs_dense"]["runs"]
    assert runs == [(student[i] + labels[i]) / ours[i] for i in range(ROUNDS)]


def test_memory_is_compared_process_by_process(raw: dict) -> None:
    raw["memory"]["bytes"]["dense fp32"]["step"] = [6.0]  # measured once
    ours, gpt2 = (raw["memory"]["bytes"][f"{name} fp32"]["step"] for name in ("cocomix", "gpt2"))
    found = all_keys(raw)["step_memory_vs_gpt2"]
    assert found["runs"] == [ours[i] / gpt2[i] for i in range(len(ours))]
    assert found["dense_twin"]["runs"] == [6.0 / gpt2[0]]
    peaks = {
        name: [before + more for before, more in zip(one["before"], one["forward_backward"], strict=True)]
        for name, one in raw["memory"]["bytes"].items()
    }
    expected = [peaks["cocomix fp32"][i] / peaks["gpt2 fp32"][i] for i in range(len(ours))]
    assert found["forward_backward_with_libraries"]["runs"] == expected


def test_memory_of_a_slot_is_a_ratio_to_the_bare_one(raw: dict) -> None:
    raw["mixing"]["bytes"] |= {"bare": 4, "residual": 5}
    assert all_keys(raw)["residual_vs_bare"]["memory"] == 1.25


def test_saelens_is_taken_at_its_fastest(raw: dict) -> None:
    found = all_keys(raw)["sae_step_vs_saelens"]
    every = {name: median(by_hand(raw, "sae", "cocomix", f"saelens {name}")) for name in ("dense", "sparse")}
    assert found["value"] == max(every.values())
    assert every[found["fastest_saelens"].removeprefix("saelens ")] == found["value"]
    assert set(found["against"]) == {"saelens dense", "saelens sparse", "sparsify"}


def test_without_saelens_there_is_no_ratio_to_it(raw: dict) -> None:
    for name in ("saelens dense", "saelens sparse"):
        del raw["sae"]["contestants"][name]
    assert "sae_step_vs_saelens" not in all_keys(raw)


def test_only_what_was_measured_has_keys(raw: dict) -> None:
    assert set(all_keys(raw)) == set(KEYS)
    assert set(all_keys({"generate": raw["generate"]})) == {"generate_vs_gpt2"}
    assert all_keys({}) == {} and slopes({}) == {} and peak_shares({}) == {} and waiting_shares({}) == {}


def test_a_bar_is_met_on_its_own_side(raw: dict) -> None:
    assert Bar(1.0, at_most=True).met(1.0) and not Bar(1.0, at_most=True).met(1.1)
    assert Bar(2.0, at_most=False).met(2.0) and not Bar(2.0, at_most=False).met(1.9)
    gain = all_keys(raw)["bf16_gain"]
    gpt2 = median(by_hand(raw, "step", "gpt2 fp32", "gpt2 bf16"))
    assert bar_of("bf16_gain", gain) == Bar(gpt2, at_most=False)


def test_shares_are_of_the_fastest_product_in_the_same_precision(raw: dict) -> None:
    found, peaks = peak_shares(raw), matmul_peak(raw)
    fastest = min(min(raw["peak"]["contestants"][name]["seconds"]) for name in ("8 fp32", "16 fp32"))
    assert peaks["fp32"] == 5e12 / fastest
    seconds = raw["step"]["contestants"]["cocomix bf16"]["seconds"]
    expected = [7e9 / one / peaks["bf16"] for one in seconds]
    assert found["step"]["cocomix bf16"]["runs"] == pytest.approx(expected)
    assert set(found) == {"step"} and "dense labels fp32" not in found["step"]


def test_waiting_is_the_share_of_reading(raw: dict) -> None:
    about = raw["step"]["contestants"]["cocomix fp32"]
    runs = waiting_shares(raw)["cocomix fp32"]["runs"]
    assert runs == [about["laps"]["data"][i] / about["seconds"][i] for i in range(ROUNDS)]
    assert "dense labels fp32" not in waiting_shares(raw)


def test_a_slope_is_the_exponent_of_a_power_law(raw: dict) -> None:
    assert slopes(raw)["batch"]["a"] == pytest.approx(1.5) and slopes(raw)["batch"]["b"] == pytest.approx(0)
    rng = random.Random(1)
    at, values = [1.0, 2.0, 4.0, 8.0], [rng.uniform(1, 5) for _ in range(4)]
    x = torch.tensor([[math.log(one), 1.0] for one in at], dtype=torch.float64)
    y = torch.tensor([[math.log(one)] for one in values], dtype=torch.float64)
    assert slope(at, values) == pytest.approx(float(torch.linalg.lstsq(x, y).solution[0]))


def test_on_a_gpu_utilisation_is_of_the_bf16_peak(raw: dict) -> None:
    found, sizes = on_gpu(raw)["69m"], raw["gpu"]["sizes"]["69m"]
    seconds = sorted(sizes["seconds"])[1]
    assert found["tokens_per_second"] == sizes["tokens"] / seconds and found["peak_bytes"] == sizes["bytes"]
    assert found["mfu"] == pytest.approx(sizes["flops"] / seconds / matmul_peak(raw)["bf16"])
    del raw["peak"]
    assert math.isnan(on_gpu(raw)["69m"]["mfu"])


def test_agreement_counts_shared_labels_where_both_have_some() -> None:
    generator = torch.Generator().manual_seed(0)

    def labels() -> ConceptLabels:
        ids = torch.rand(2, 9, 6, generator=generator).argsort(-1)[..., :3]
        return ConceptLabels(ids, torch.zeros(2, 9, 3), torch.rand(2, 9, generator=generator) > 0.3)

    one, other = labels(), labels()
    shared, first, total = 0.0, 0, 0
    for row in range(2):
        for place in range(9):
            if one.valid[row, place] and other.valid[row, place]:
                mine, theirs = one.ids[row, place].tolist(), other.ids[row, place].tolist()
                shared += len(set(mine) & set(theirs)) / 3
                first += mine[0] == theirs[0]
                total += 1
    found = agreement(one, other)
    assert 0 < total < 18
    assert found["labels"] == pytest.approx(shared / total) and found["best"] == pytest.approx(first / total)
    assert found["valid"] == pytest.approx(float((one.valid == other.valid).double().mean()))
