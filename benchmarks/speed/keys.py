"""The reported ratios: computed from raw seconds and bytes, each with its bar.

A ratio is taken round by round between workloads of one group. `value` is the median over the rounds, `spread` the
smallest and the largest, `runs` all of them. Ratios of groups that were not measured are missing.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.speed.measure import figure, ratios

Raw = Mapping[str, Any]
"""Raw figures by group."""


class Bar(NamedTuple):
    """The limit a ratio must meet at the shape `BAR_SHAPE` on a CPU."""

    limit: float
    at_most: bool

    def met(self, value: float) -> bool:
        """Return whether `value` meets the bar."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:.2f}"


BAR_SHAPE = "69m"


class Key(NamedTuple):
    """A reported ratio."""

    title: str
    of: Callable[[Raw], dict[str, Any]]
    bar: Bar | None
    """None: the figure has its own bar, in `limit`"""


def seconds(raw: Raw, group: str, name: str) -> list[float]:
    """Return the seconds of a workload in each round."""
    return raw[group]["contestants"][name]["seconds"]


def _step(raw: Raw) -> dict[str, Any]:
    def passes(name: str) -> list[float]:
        return raw["step"]["contestants"][name]["laps"]["forward_backward"]

    whole = ratios(seconds(raw, "step", "cocomix fp32"), seconds(raw, "step", "gpt2 fp32"))
    part = ratios(passes("cocomix fp32"), passes("gpt2 fp32"))
    dense = ratios(seconds(raw, "step", "dense fp32"), seconds(raw, "step", "gpt2 fp32"))
    return figure(whole, forward_backward=figure(part), dense_twin=figure(dense))


def _whole_step(raw: Raw) -> dict[str, Any]:
    names = ("dense fp32", "dense labels fp32")
    student, labels = (seconds(raw, "step", name) for name in names)
    both = [first + second for first, second in zip(student, labels, strict=True)]
    ours = seconds(raw, "step", "cocomix fp32")
    return figure(ratios(both, ours), student_alone=figure(ratios(student, ours)))


def _memory(raw: Raw) -> dict[str, Any]:
    peaks = raw["memory"]["bytes"]

    def against_gpt2(name: str, kind: str) -> list[float]:
        above, below = peaks[f"{name} fp32"][kind], peaks["gpt2 fp32"][kind]
        return ratios(above, below[: len(above)])

    def with_libraries(name: str) -> list[float]:
        peak = peaks[f"{name} fp32"]
        return [sum(bytes_) for bytes_ in zip(peak["before"], peak["forward_backward"], strict=True)]

    return figure(
        against_gpt2("cocomix", "step"),
        forward_backward=figure(against_gpt2("cocomix", "forward_backward")),
        forward_backward_with_libraries=figure(ratios(with_libraries("cocomix"), with_libraries("gpt2"))),
        dense_twin=figure(against_gpt2("dense", "step")),
    )


def _labelling(precision: str) -> Callable[[Raw], dict[str, Any]]:
    def of(raw: Raw) -> dict[str, Any]:
        dense = seconds(raw, "labelling", "dense fp32")
        ratio = figure(ratios(dense, seconds(raw, "labelling", f"reference {precision}")))
        ratio["exact"] = figure(ratios(dense, seconds(raw, "labelling", f"exact {precision}")))
        return ratio if precision == "fp32" else ratio | {"agreement_with_fp32": raw["labelling"]["agreement"]}

    return of


def _exact(raw: Raw) -> dict[str, Any]:
    def cost(precision: str) -> list[float]:
        names = (f"exact {precision}", f"reference {precision}")
        return ratios(*(seconds(raw, "labelling", name) for name in names))

    return figure(cost("fp32"), bf16=figure(cost("bf16")))


def _generate(raw: Raw) -> dict[str, Any]:
    sizes = [name.partition(" x")[2] for name in raw["generate"]["contestants"] if name.startswith("gpt2")]
    by_size = {
        size: figure(ratios(*(seconds(raw, "generate", f"{name} x{size}") for name in ("cocomix", "gpt2"))))
        for size in sizes
    }
    return by_size[sizes[0]] | {f"batch_{size}": by_size[size] for size in sizes[1:]}


def _sae(raw: Raw) -> dict[str, Any]:
    ours = seconds(raw, "sae", "cocomix")
    against = {
        name: figure(ratios(ours, record["seconds"]))
        for name, record in raw["sae"]["contestants"].items()
        if name != "cocomix"
    }
    fastest = max((name for name in against if name.startswith("saelens")), key=lambda name: against[name]["value"])
    return against[fastest] | {"fastest_saelens": fastest, "against": against}


def _gain(raw: Raw) -> dict[str, Any]:
    def of(name: str) -> list[float]:
        return ratios(*(seconds(raw, "step", f"{name} {precision}") for precision in ("fp32", "bf16")))

    gpt2 = figure(of("gpt2"))
    return figure(of("cocomix"), gpt2=gpt2, limit=gpt2["value"])


def _mixing(variant: str) -> Callable[[Raw], dict[str, Any]]:
    def of(raw: Raw) -> dict[str, Any]:
        taken = ratios(*(seconds(raw, "mixing", f"{name} fp32") for name in (variant, "bare")))
        peaks = raw["mixing"]["bytes"]
        return figure(taken, memory=peaks[variant] / peaks["bare"])

    return of


KEYS: dict[str, Key] = {
    "step_vs_gpt2": Key("training step, time / GPT-2", _step, Bar(1.75, True)),
    "whole_step_vs_dense": Key("reference's step with labels / ours", _whole_step, Bar(3.0, False)),
    "step_memory_vs_gpt2": Key("training step, peak memory / GPT-2", _memory, Bar(1.0, True)),
    "residual_vs_bare": Key("residual slots, step time / bare", _mixing("residual"), Bar(1.02, True)),
    "scaled_vs_bare": Key("vector_scale, step time / without", _mixing("scaled"), Bar(1.02, True)),
    "residual_scaled_vs_bare": Key("both, step time / neither", _mixing("residual scaled"), Bar(1.02, True)),
    "labelling_vs_dense": Key("labelling, tokens/s / reference's", _labelling("fp32"), Bar(1.7, False)),
    "labelling_bf16_vs_dense": Key("labelling in bf16 / reference's fp32", _labelling("bf16"), Bar(2.8, False)),
    "exact_vs_reference_rule": Key("exact rule, time / our reference rule", _exact, Bar(1.3, True)),
    "generate_vs_gpt2": Key("generation, time / GPT-2", _generate, Bar(1.4, True)),
    "sae_step_vs_saelens": Key("autoencoder step, time / SAELens", _sae, Bar(1.0, True)),
    "bf16_gain": Key("training step, fp32 / bf16", _gain, None),
}


def bar_of(name: str, ratio: Mapping[str, Any]) -> Bar:
    """Return the bar of a ratio."""
    return KEYS[name].bar or Bar(ratio["limit"], at_most=False)


def all_keys(raw: Raw) -> dict[str, dict[str, Any]]:
    """Return every ratio whose groups were measured and whose workloads were available."""
    ratios_by_name: dict[str, dict[str, Any]] = {}
    for name, key in KEYS.items():
        try:
            ratios_by_name[name] = key.of(raw)
        except (KeyError, ValueError):  # the group is not measured, or the other library is not installed
            continue
    return ratios_by_name


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
    """Return the least-squares slope of log `values` over log `at`."""
    return statistics.linear_regression([math.log(size) for size in at], [math.log(value) for value in values]).slope


def matmul_peak(raw: Raw) -> dict[str, float]:
    """Return the operations per second of the fastest matrix product, by precision."""
    peaks: dict[str, float] = {}
    for record in raw.get("peak", {}).get("contestants", {}).values():
        speed = record["flops"] / min(record["seconds"])
        peaks[record["precision"]] = max(peaks.get(record["precision"], 0.0), speed)
    return peaks


def peak_shares(raw: Raw) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the share of its precision's matrix product peak that each workload reached, by group and name."""
    peaks = matmul_peak(raw)
    shares = {
        group: {
            name: figure([record["flops"] / taken / peaks[record["precision"]] for taken in record["seconds"]])
            for name, record in group_raw.get("contestants", {}).items()
            if record["flops"] and record["precision"] in peaks
        }
        for group, group_raw in raw.items()
        if group != "peak"
    }
    return {group: by_name for group, by_name in shares.items() if by_name}


def waiting_shares(raw: Raw) -> dict[str, dict[str, Any]]:
    """Share of a training step spent reading its windows and labels, by contestant."""
    return {
        name: figure(ratios(record["laps"]["data"], record["seconds"]))
        for name, record in raw.get("step", {}).get("contestants", {}).items()
        if "data" in record["laps"]
    }


def on_gpu(raw: Raw) -> dict[str, dict[str, float]]:
    """Return tokens per second, model FLOPs utilisation (NaN without a measured peak) and peak memory, by size."""
    peak = matmul_peak(raw).get("bf16")
    return {
        name: {
            "tokens_per_second": size["tokens"] / median(size["seconds"]),
            "mfu": size["flops"] / median(size["seconds"]) / peak if peak else math.nan,
            "peak_bytes": size["bytes"],
        }
        for name, size in raw.get("gpu", {}).get("sizes", {}).items()
    }
