"""Results of methods and their summary, against loops over seeds, concepts and doses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.steering.study import METHODS, MethodResult, bounded_area, summary
from cocomix.steering.study.judge import leak
from cocomix.steering.study.method_result import GAINS
from cocomix.steering.study.methods import GeneratingMethod
from cocomix.steering.study.report import headline
from cocomix.steering.study.summary import DRAWS, Resampling, arrays, best_half
from tests.helpers.steering_study import study_context


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, MethodResult]]:
    """Three methods, two seeds."""
    results: dict[str, dict[int, MethodResult]] = {"none": {}, "concept": {}, "random": {}, "prompt": {}}
    for seed in (0, 1):
        context = study_context(tmp_path_factory.mktemp("m"))
        context.key = (0, seed)
        for name, by_seed in results.items():
            source = results["concept"][seed] if METHODS[name].derived_from else None
            by_seed[seed] = METHODS[name]().measure(context, source, lambda *_: None)
    return results


def test_a_result_holds_what_the_judge_found(tmp_path: Path) -> None:
    context, method = study_context(tmp_path), METHODS["residual"]()
    assert isinstance(method, GeneratingMethod)
    ticks = []
    result = method.measure(context, None, lambda *step: ticks.append(step))
    base = context.judge.read(context.subject("teacher").unsteered)
    assert all(4.0 in METHODS[name].doses for name in METHODS if name != "none")
    assert [one.dose for one in result.at] == list(method.doses) and ticks[-1] == (8, 8)
    own = [one.concept for one in context.concepts]
    assert result.unsteered.presence == pytest.approx(base.shares.mean(0)[own].tolist(), abs=1e-6)
    assert result.unsteered.loss == pytest.approx(float(base.loss.mean()))
    texts = method.texts(context)(4.0)
    found, kept = context.judge.read(texts), result.at[4]
    for group in range(3):
        assert kept.presence[group] == pytest.approx(found.shares[group, own].tolist(), abs=1e-6)
        assert kept.follow[group] == pytest.approx(found.follow[group].tolist(), abs=1e-6)
        assert kept.words[group] == pytest.approx(found.words[group].tolist(), abs=1e-6)
    moved = leak(found.shares, base.shares.mean(0), context.concept_ids)
    assert kept.leak == pytest.approx(moved.tolist(), abs=1e-6)
    for place, example in enumerate(result.examples):
        row = 2 * place + place % 2
        assert example.concept == own[place] and example.dose == 4.0
        assert example.steered == context.decode(texts[row, 5:].tolist())
        assert example.unsteered == context.decode(context.subject("teacher").unsteered[row, 5:].tolist())
        assert example.prompt == context.decode(context.prompts[place % 2].tolist())


def test_the_control_reads_the_texts_of_another_concept(results: dict[str, dict[int, MethodResult]]) -> None:
    orders = set()
    for seed in (0, 1):
        own, control = results["concept"][seed], results["random"][seed]
        order = [own.at[-1].loss.index(loss) for loss in control.at[-1].loss]
        orders.add(tuple(order))
        assert all(i != j for i, j in enumerate(order))
        for mine, other in zip(control.at, own.at, strict=True):
            for i, j in enumerate(order):
                assert mine.presence[i][i] == other.presence[j][i] and mine.words[i][i] == other.words[j][i]
                assert mine.follow[i][i] == other.follow[j][i]
                assert mine.loss[i] == other.loss[j] and mine.leak[i] == other.leak[j]
        assert control.unsteered == own.unsteered and not control.examples


def test_gains_and_costs_are_against_unsteered_text(results: dict[str, dict[int, MethodResult]]) -> None:
    by_seed = list(results["prompt"].values())
    found = arrays(by_seed)
    assert found["presence"].shape == (2, 3, 4)
    for s, result in enumerate(by_seed):
        for i in range(3):
            for d, dose in enumerate(result.at):
                gain = dose.presence[i][i] - result.unsteered.presence[i]
                words = dose.words[i][i] - result.unsteered.words[i]
                assert found["presence"][s, i, d] == pytest.approx(gain)
                follow = dose.follow[i][i] - result.unsteered.follow[i]
                assert found["follow"][s, i, d] == pytest.approx(follow)
                assert found["words"][s, i, d] == pytest.approx(words)
                assert found["fluency_loss"][s, i, d] == pytest.approx(dose.loss[i] - result.unsteered.loss)
                assert found["leak"][s, i, d] == dose.leak[i]


def test_means_of_draws_are_means_of_drawn_data() -> None:
    draws = Resampling(3, 4)
    values = np.random.default_rng(0).normal(size=(3, 4, 2))
    found = draws.means(values)
    assert found.shape == (1 + DRAWS, 2) and found[0] == pytest.approx(values.mean((0, 1)))
    for draw in (1, 2, DRAWS):
        seeds = np.repeat(np.arange(3), (draws.seeds[draw] * 3).round().astype(int))
        concepts = np.repeat(np.arange(4), (draws.concepts[draw] * 4).round().astype(int))
        assert len(seeds) == 3 and len(concepts) == 4
        assert found[draw] == pytest.approx(values[seeds][:, concepts].mean((0, 1)))
    assert len(np.unique(draws.concepts, axis=0)) > 30


def test_summary_is_made_of_mean_curves(results: dict[str, dict[int, MethodResult]]) -> None:
    report = summary(results)
    assert report["seeds"] == [0, 1] and list(report["methods"]) == list(results)
    for name, one in report["methods"].items():
        values = arrays(list(results[name].values()))
        gains, costs = values["presence"].mean((0, 1)), values["fluency_loss"].mean((0, 1))
        unsteered = np.mean([result.unsteered.distinct2 for result in results[name].values()])
        varied = values["distinct2"].mean((0, 1)) >= 0.9 * unsteered
        area = float(bounded_area(gains[varied], costs[varied])) if varied.any() else 0.0
        assert one["area"]["presence"]["mean"] == pytest.approx(area)
        assert one["area"]["presence"]["low"] <= one["area"]["presence"]["high"]
        for d, dose in enumerate(one["doses"]):
            assert dose["presence"]["mean"] == pytest.approx(gains[d])
            assert dose["presence"]["low"] <= dose["presence"]["mean"] <= dose["presence"]["high"]
            assert dose["fluency_loss"]["mean"] == pytest.approx(costs[d])
        affordable = [d for d in range(len(costs)) if costs[d] <= 1 and gains[d] > 0 and varied[d]]
        best = max(affordable, key=lambda d: gains[d], default=None)
        assert one["best"] == (None if best is None else one["doses"][best]["dose"])
    by_name = {name: one["area"]["words"]["mean"] for name, one in report["methods"].items()}
    for one in report["differences"]:
        if one["figure"] == "words":
            assert one["mean"] == pytest.approx(by_name["concept"] - by_name[one["than"]])
        verdict = "better" if one["low"] > 0 else "worse" if one["high"] < 0 else "undecided"
        assert one["verdict"] == verdict
    assert len(report["differences"]) == 9


def test_differences_are_of_paired_draws(results: dict[str, dict[int, MethodResult]]) -> None:
    same = summary({"concept": results["concept"], "prompt": results["concept"]})
    for one in same["differences"]:
        assert (one["mean"], one["low"], one["high"], one["verdict"]) == (0, 0, 0, "undecided")


def test_one_concept_and_seed_have_no_spread() -> None:
    draws = Resampling(1, 1)
    assert torch.equal(torch.tensor(draws.seeds), torch.ones(1 + DRAWS, 1, dtype=torch.double))


def test_what_is_said_of_a_difference() -> None:
    report: dict[str, Any] = {"student": "s", "bound": 1.0, "methods": {}, "differences": []}
    for place, name in enumerate(("concept", "prompt", "residual", "random")):
        area = {"mean": 0.01 * place, "low": 0.0, "high": 0.05}
        report["methods"][name] = {"area": dict.fromkeys(GAINS, area)}
    for than, ends in {"prompt": (0.01, 0.02), "residual": (-0.05, -0.01), "random": (-0.0001, 0.02)}.items():
        verdict = "better" if ends[0] > 0 else "worse" if ends[1] < 0 else "undecided"
        stats = {"mean": sum(ends) / 2, "low": ends[0], "high": ends[1], "verdict": verdict}
        report["differences"].append({"method": "concept", "than": than, "figure": "presence"} | stats)
    said = headline(report)
    assert "Order by an SAE of the teacher: random 3.0, residual 2.0, prompt 1.0, concept 0.0." in said[1]
    assert "ahead of prompt by 1.5 (1.0 to 2.0)" in said[1] and "behind residual by 3.0 (1.0 to 5.0)" in said[1]
    assert "not told apart from random, 1.0 (0.0 to 2.0)" in said[1]


def test_the_best_half_is_by_output_score(results: dict[str, dict[int, MethodResult]]) -> None:
    scores = np.array([results["concept"][seed].output_scores for seed in (0, 1)]).mean(0)
    assert best_half(results) == [int(scores.argmax())] and scores.max() > scores.min()
    assert results["random"][0].output_scores is None and best_half({"none": results["none"]}) is None


def test_results_of_some_concepts_are_those_of_a_study_of_these(results: dict[str, dict[int, MethodResult]]) -> None:
    places = [2, 0]
    some = {name: {seed: one.only(places) for seed, one in by_seed.items()} for name, by_seed in results.items()}
    for name, by_seed in results.items():
        whole, part = arrays(list(by_seed.values())), arrays(list(some[name].values()))
        for figure, values in whole.items():
            assert np.array_equal(part[figure], values[:, places])
    report = summary(some)
    assert len(report["methods"]["concept"]["by_concept"]["presence"]) == 2
    assert [one.concept for one in some["concept"][0].examples] == [8, 3]


def test_texts_that_repeat_themselves_do_not_count(results: dict[str, dict[int, MethodResult]]) -> None:
    result = results["concept"][0]
    dull = result.at[-1].model_copy(
        update={"loss": [0.0] * 3, "distinct2": [0.89 * result.unsteered.distinct2] * 3, "presence": [[1.0] * 3] * 3}
    )
    varied = dull.model_copy(update={"distinct2": [0.91 * result.unsteered.distinct2] * 3})
    for dose, area in ((dull, 0.0), (varied, 1 - np.mean(result.unsteered.presence))):
        report = summary({"concept": {0: result.model_copy(update={"at": [dose]})}})
        assert report["methods"]["concept"]["area"]["presence"]["mean"] == pytest.approx(area)
        assert report["methods"]["concept"]["by_seed"]["presence"] == [pytest.approx(area)]
        assert (report["methods"]["concept"]["best"] is None) == (area == 0)
