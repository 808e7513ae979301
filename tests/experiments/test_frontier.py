"""The frontier: a line known by hand, nothing beyond its ends, and rankings that may say that NTP wins."""

from math import log, sqrt
from typing import Any

import pytest

from cocomix.experiments.comparisons import AXES, against_frontier, axes, best, interpolate, statement
from cocomix.report.label_placement import overlap, place_labels
from tests.helpers.experiment_results import compare, experiment, setting, student

NTP = ("ntp_half", "ntp", "ntp_long")


def on_the_line(flops: float, seed: int) -> float:
    """Test loss of NTP: 0.2 less for each doubling from 2e9 FLOPs, and another start for each seed."""
    return 5.0 + 0.3 * seed - 0.2 * log(flops / 2e9, 2)


def ntp(name: str, flops: float) -> dict[str, Any]:
    return student(name, {seed: on_the_line(flops, seed) for seed in range(3)}, flops=flops, tokens=flops / 1e7)


def variant(name: str, flops: float, gains: list[float], **figures: Any) -> dict[str, Any]:
    """A variant at so many FLOPs whose loss is the line's plus `gains`."""
    losses = {seed: on_the_line(flops, seed) + gain for seed, gain in enumerate(gains)}
    return student(name, losses, flops=flops, **figures)


def grid(*students: dict[str, Any], **other: Any) -> dict[str, Any]:
    return setting("a", ntp("ntp_half", 2e9), ntp("ntp", 4e9), ntp("ntp_long", 8e9), *students, **other)


def test_interpolation_is_linear_in_log_cost_and_never_leaves_the_range() -> None:
    points = [(800.0, 3.0), (100.0, 5.0), (200.0, 4.0)]
    assert interpolate(points, 100.0) == 5.0 and interpolate(points, 800.0) == 3.0
    assert interpolate(points, sqrt(100.0 * 200.0)) == pytest.approx(4.5)
    assert interpolate(points, 400.0) == pytest.approx(3.5)
    assert interpolate(points, 99.0) is None and interpolate(points, 801.0) is None and interpolate([], 1.0) is None


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([-0.05, -0.06, -0.07], "better"),
        ([0.05, 0.06, 0.07], "worse"),
        ([-0.05, 0.06, -0.07], "undecided"),
        ([-0.05], "undecided"),
    ],
)
def test_a_variant_off_the_line_is_found_at_its_distance(gains: list[float], verdict: str) -> None:
    found = against_frontier(grid(variant("pause", 6e9, gains)), NTP, "pause", "flops")
    # Between its points the frontier is straight in log FLOPs, as the line it was drawn from.
    assert found["difference"] == pytest.approx(sum(gains) / len(gains)) and found["n"] == len(gains)
    assert found["verdict"] == verdict and (found["ci95"] is None) == (len(gains) == 1)
    if len(gains) == 3 and verdict != "undecided":
        half = 4.302652730 * 0.01 / sqrt(3)
        assert found["ci95"] == pytest.approx([found["difference"] - half, found["difference"] + half])


@pytest.mark.parametrize(("flops", "where", "ratio"), [(9e9, "dearer", "1.12x"), (1e9, "cheaper", "0.50x")])
def test_nothing_is_extrapolated(flops: float, where: str, ratio: str) -> None:
    found = against_frontier(grid(variant("pause", flops, [0.0] * 3)), NTP, "pause", "flops")
    assert found["difference"] is None and found["range"] == where and ratio in found["why"]
    assert found["verdict"] == "undecided"


def test_labels_are_charged_in_full() -> None:
    here = grid(variant("cocomix", 6e9, [-0.05, -0.06, -0.07]))  # its labels cost 1e9 FLOPs more
    found = against_frontier(here, NTP, "cocomix", "flops_with_labels")
    assert found["difference"] == pytest.approx(-0.06 + 0.2 * log(7 / 6, 2))
    here = grid(variant("cocomix", 7.5e9, [-0.05] * 3))
    assert against_frontier(here, NTP, "cocomix", "flops")["difference"] == pytest.approx(-0.05)
    assert against_frontier(here, NTP, "cocomix", "flops_with_labels")["range"] == "dearer"


def test_seconds_are_steps_times_the_timed_step_only_if_all_were_timed() -> None:
    here = grid(variant("cocomix", 6e9, [-0.05] * 3))
    here["students"][0]["runs"][0]["curve"][-1]["step"] = 2
    for run in here["students"][0]["runs"]:
        run["curve"][-1]["step"], run["seconds"] = 2, 4.0
    for run in here["students"][2]["runs"]:
        run["curve"][-1]["step"], run["seconds"] = 8, 16.0
    # Trained: 4, 8 and 16 s against the variant's 8 s, which is NTP's own place on the line.
    loss = [on_the_line(6e9, seed) - 0.05 - on_the_line(4e9, seed) for seed in range(3)]
    assert against_frontier(here, NTP, "cocomix", "seconds")["difference"] == pytest.approx(loss[0])
    partly = here | {"timing": dict.fromkeys((*NTP,), 1.0)}
    assert against_frontier(partly, NTP, "cocomix", "seconds")["difference"] == pytest.approx(loss[0])
    # Timed: 2, 4 and 8 s against 4 steps of 1.5 s, which is where 6e9 FLOPs are on the line.
    timed = here | {"timing": dict.fromkeys((*NTP,), 1.0) | {"cocomix": 1.5}}
    assert against_frontier(timed, NTP, "cocomix", "seconds")["difference"] == pytest.approx(-0.05)


def test_without_two_lengths_there_is_no_frontier() -> None:
    here = grid(variant("pause", 6e9, [0.0] * 3))
    found = against_frontier(here, ("ntp", "absent"), "pause", "flops")
    assert found["difference"] is None and found["why"] == "no frontier of NTP students here"
    found = against_frontier(here, NTP, "absent", "flops")
    assert found["difference"] is None and found["why"] == "not trained here"


def rankings(**gains: list[float]) -> dict[str, Any]:
    """Best of variants at 6e9 FLOPs and NTP's tokens, with the given distances from the line."""
    here = grid(*(variant(name, 6e9, one) for name, one in gains.items()))
    claim = compare(1, ("cocomix", "ntp"), settings=("a",))
    results = experiment([claim], NTP, a=here)
    ranked = best(results)
    return ranked["a"] | {"sentences": statement(results, ranked)}


def test_equal_tokens_and_equal_flops_may_have_different_winners() -> None:
    found = rankings(cocomix=[0.019, 0.02, 0.021], pause=[0.03, 0.04, 0.05])
    assert found["tokens"]["winner"] == "cocomix"  # 6e9 FLOPs on NTP's tokens buy 0.117 on the line
    assert [row["variant"] for row in found["tokens"]["ranking"]] == ["cocomix", "pause", "ntp"]
    assert found["tokens"]["ranking"][0]["difference"] == pytest.approx(0.02 - 0.2 * log(1.5, 2))
    assert found["flops"]["winner"] == "ntp"
    assert [row["variant"] for row in found["flops"]["ranking"]] == ["ntp", "cocomix", "pause"]
    assert "none of 2 variants beats ntp of any length; the nearest is cocomix, +0.0200 [" in found["flops"]["words"]
    assert "higher beyond the spread of seeds" in found["flops"]["words"]
    assert len(found["sentences"]) == 5 and found["sentences"][0].startswith("a: at equal tokens, the best of 2")


def test_cocomix_is_told_where_another_wins() -> None:
    found = rankings(cocomix=[0.01, 0.02, 0.03], pause=[-0.03, -0.04, -0.05])
    assert found["flops"]["winner"] == "pause"
    assert found["flops"]["words"].startswith("the best of 2 variants is pause, -0.0400 [")
    assert "cocomix itself: +0.0200 [" in found["flops"]["words"]


def test_rankings_without_figures_say_why() -> None:
    here = grid(variant("cocomix", 9e9, [0.0] * 3))
    ranked = best(experiment([], NTP, a=here))["a"]
    assert ranked["flops"]["winner"] is None and "outside the frontier's range" in ranked["flops"]["words"]
    assert ranked["flops"]["ranking"][0]["variant"] == "cocomix"


def test_labels_of_crowded_marks_overlap_neither_each_other_nor_marks() -> None:
    marks = [(100.0 + 3 * (i % 4), 50.0 + 2 * i) for i in range(20)]
    widths = [40.0 + 5 * (i % 5) for i in range(20)]
    corners = place_labels(marks, widths, 13.0)
    boxes = [(x, y, x + width, y + 13.0) for (x, y), width in zip(corners, widths, strict=True)]
    dots = [(x - 3, y - 3, x + 3, y + 3) for x, y in marks]
    for number, box in enumerate(boxes):
        assert not any(overlap(box, other) for other in boxes[:number] + dots)
    alone = place_labels([(10.0, 10.0)], [30.0], 10.0)
    assert alone == [(18.0, 5.0)]


def test_shared_labels_are_an_axis_where_it_is_known_who_read_them() -> None:
    """Alone, its labels take the variant off the frontier's end; shared by ten, they hardly move it."""
    here = grid(variant("cocomix", 6e9, [0.0, 0.0, 0.0]))
    for one in here["students"]:
        for run in one["runs"]:
            run["label_flops"] = 4e9 * (one["name"] == "cocomix")
            run["shared_label_flops"] = run["label_flops"] / 10
            run["shared_label_seconds"] = 0.0
    made = experiment([compare(1, ("cocomix", "ntp"), settings=("a",))], NTP, a=here)
    found = best(made)["a"]
    assert list(found) == list(AXES) == list(axes(made))
    rows = {axis: next(row for row in found[axis]["ranking"] if row["variant"] == "cocomix") for axis in found}
    assert rows["flops"]["difference"] == pytest.approx(0.0)
    assert rows["flops_with_shared_labels"]["difference"] == pytest.approx(0.2 * log(6.4e9 / 6e9, 2))
    assert rows["flops_with_labels"]["range"] == "dearer"
    del here["students"][0]["runs"][0]["shared_label_flops"]  # as in a report of an earlier version
    assert [axis for axis in axes(made) if "shared" in axis] == [] and len(best(made)["a"]) == 5
