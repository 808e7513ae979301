"""From raw seconds and bytes to the ratios that are asked for, each with its bar.

A ratio is taken round by round between contestants of one group; its value is the median over the rounds, its spread
the smallest and the largest, its runs all of them. Where a group has not been measured its keys are missing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.speed.measure import figure, ratios

Raw = Mapping[str, Any]
"""What each group measured, by its name."""


class Bar(NamedTuple):
    """What a ratio must reach at the shape `BAR_SHAPE` on a CPU."""

    limit: float
    at_most: bool

    def met(self, value: float) -> bool:
        """Whether `value` reaches it."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:.2f}"


BAR_SHAPE = "69m"


class Key(NamedTuple):
    """One ratio."""

    title: str
    of: Callable[[Raw], dict[str, Any]]
    bar: Bar | None
    """None: the figure carries its own, as `limit`"""


def seconds(raw: Raw, group: str, name: str) -> list[float]:
    """Seconds of a contestant in each round."""
    return raw[group]["contestants"][name]["seconds"]


def _step(raw: Raw) -> dict[str, Any]:
    def split(name: str) -> list[float]:
        return raw["step"]["contestants"][name]["laps"]["forward_backward"]

    whole = ratios(seconds(raw, "step", "cocomix fp32"), seconds(raw, "step", "gpt2 fp32"))
    part = ratios(split("cocomix fp32"), split("gpt2 fp32"))
    dense = ratios(seconds(raw, "step", "dense fp32"), seconds(raw, "step", "gpt2 fp32"))
    return figure(whole, forward_backward=figure(part), dense_twin=figure(dense))


def _whole_step(raw: Raw) -> dict[str, Any]:
    names = ("dense fp32", "dense labels fp32")
    student, labels = (seconds(raw, "step", name) for name in names)
    both = [one + other for one, other in zip(student, labels, strict=True)]
    ours = seconds(raw, "step", "cocomix fp32")
    return figure(ratios(both, ours), student_alone=figure(ratios(student, ours)))


def _memory(raw: Raw) -> dict[str, Any]:
    found = raw["memory"]["bytes"]

    def against_gpt2(name: str, kind: str) -> list[float]:
        above, below = found[f"{name} fp32"][kind], found["gpt2 fp32"][kind]
        return ratios(above, below[: len(above)])

    def whole(name: str) -> list[float]:
        one = found[f"{name} fp32"]
        return [sum(bytes_) for bytes_ in zip(one["before"], one["forward_backward"], strict=True)]

    return figure(
        against_gpt2("cocomix", "step"),
        forward_backward=figure(against_gpt2("cocomix", "forward_backward")),
        forward_backward_with_libraries=figure(ratios(whole("cocomix"), whole("gpt2"))),
        dense_twin=figure(against_gpt2("dense", "step")),
    )


def _labelling(precision: str) -> Callable[[Raw], dict[str, Any]]:
    def of(raw: Raw) -> dict[str, Any]:
        dense = seconds(raw, "labelling", "dense fp32")
        found = figure(ratios(dense, seconds(raw, "labelling", f"reference {precision}")))
        found["exact"] = figure(ratios(dense, seconds(raw, "labelling", f"exact {precision}")))
        return found if precision == "fp32" else found | {"agreement_with_fp32": raw["labelling"]["agreement"]}

    return of


def _exact(raw: Raw) -> dict[str, Any]:
    def cost(precision: str) -> list[float]:
        names = (f"exact {precision}", f"reference {precision}")
        return ratios(*(seconds(raw, "labelling", name) for name in names))

    return figure(cost("fp32"), bf16=figure(cost("bf16")))


def _generate(raw: Raw) -> dict[str, Any]:
    sizes = [name.partition(" x")[2] for name in raw["generate"]["contestants"] if name.startswith("gpt2")]
    found = {
        size: figure(ratios(*(seconds(raw, "generate", f"{name} x{size}") for name in ("cocomix", "gpt2"))))
        for size in sizes
    }
    return found[sizes[0]] | {f"batch_{size}": found[size] for size in sizes[1:]}


def _sae(raw: Raw) -> dict[str, Any]:
    ours = seconds(raw, "sae", "cocomix")
    found = {
        name: figure(ratios(ours, about["seconds"]))
        for name, about in raw["sae"]["contestants"].items()
        if name != "cocomix"
    }
    fastest = max((name for name in found if name.startswith("saelens")), key=lambda name: found[name]["value"])
    return found[fastest] | {"fastest_saelens": fastest, "against": found}


def _gain(raw: Raw) -> dict[str, Any]:
    def of(name: str) -> list[float]:
        return ratios(*(seconds(raw, "step", f"{name} {precision}") for precision in ("fp32", "bf16")))

    gpt2 = figure(of("gpt2"))
    return figure(of("cocomix"), gpt2=gpt2, limit=gpt2["value"])


KEYS: dict[str, Key] = {
    "step_vs_gpt2": Key("training step, time / GPT-2", _step, Bar(1.75, True)),
    "whole_step_vs_dense": Key("reference's step with labels / ours", _whole_step, Bar(3.0, False)),
    "step_memory_vs_gpt2": Key("training step, peak memory / GPT-2", _memory, Bar(1.0, True)),
    "labelling_vs_dense": Key("labelling, tokens/s / reference's", _labelling("fp32"), Bar(1.7, False)),
    "labelling_bf16_vs_dense": Key("labelling in bf16 / reference's fp32", _labelling("bf16"), Bar(2.8, False)),
    "exact_vs_reference_rule": Key("exact rule, time / our reference rule", _exact, Bar(1.3, True)),
    "generate_vs_gpt2": Key("generation, time / GPT-2", _generate, Bar(1.4, True)),
    "sae_step_vs_saelens": Key("autoencoder step, time / SAELens", _sae, Bar(1.0, True)),
    "bf16_gain": Key("training step, fp32 / bf16", _gain, None),
}


def bar_of(name: str, found: Mapping[str, Any]) -> Bar:
    """The bar of a figure."""
    return KEYS[name].bar or Bar(found["limit"], at_most=False)


def all_keys(raw: Raw) -> dict[str, dict[str, Any]]:
    """Every ratio whose groups are there, and whose contestants could be had."""
    found: dict[str, dict[str, Any]] = {}
    for name, key in KEYS.items():
        try:
            found[name] = key.of(raw)
        except (KeyError, ValueError):  # a group not yet measured, or no rival installed
            continue
    return found


def slopes(raw: Raw) -> dict[str, dict[str, float]]:
    """How seconds grow along each axis, by contestant: the least-squares slope of their logarithms (1: in step)."""
    return {
        axis: {
            name: slope([point["at"] for point in points], [median(point["seconds"][name]) for point in points])
            for name in points[0]["seconds"]
        }
        for axis, points in raw.get("growth", {}).get("axes", {}).items()
    }


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log `values` over log `at`."""
    x, y = [math.log(one) for one in at], [math.log(one) for one in values]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((one - middle_x) * (other - middle_y) for one, other in zip(x, y, strict=True))
    return across / sum((one - middle_x) ** 2 for one in x)


def matmul_peak(raw: Raw) -> dict[str, float]:
    """Operations a second of the fastest product, by precision."""
    peaks: dict[str, float] = {}
    for about in raw.get("peak", {}).get("contestants", {}).values():
        reached = about["flops"] / min(about["seconds"])
        peaks[about["precision"]] = max(peaks.get(about["precision"], 0.0), reached)
    return peaks


def peak_shares(raw: Raw) -> dict[str, dict[str, dict[str, Any]]]:
    """Share of the matrix product peak of its precision that each contestant reached, by group and name."""
    peaks = matmul_peak(raw)
    shares = {
        group: {
            name: figure([about["flops"] / one / peaks[about["precision"]] for one in about["seconds"]])
            for name, about in found.get("contestants", {}).items()
            if about["flops"] and about["precision"] in peaks
        }
        for group, found in raw.items()
        if group != "peak"
    }
    return {group: found for group, found in shares.items() if found}


def waiting_shares(raw: Raw) -> dict[str, dict[str, Any]]:
    """Share of a training step spent reading its windows and labels, by contestant."""
    return {
        name: figure(ratios(about["laps"]["data"], about["seconds"]))
        for name, about in raw.get("step", {}).get("contestants", {}).items()
        if "data" in about["laps"]
    }


def on_gpu(raw: Raw) -> dict[str, dict[str, float]]:
    """Tokens a second, model FLOPs utilisation (None without a measured peak) and peak memory, by size."""
    peak = matmul_peak(raw).get("bf16")
    return {
        name: {
            "tokens_per_second": found["tokens"] / median(found["seconds"]),
            "mfu": found["flops"] / median(found["seconds"]) / peak if peak else math.nan,
            "peak_bytes": found["bytes"],
        }
        for name, found in raw.get("gpu", {}).get("sizes", {}).items()
    }
