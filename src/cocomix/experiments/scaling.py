"""Scaling: a variant's gain over the baseline by size and tokens a parameter, and what that extrapolates to.

Families are trained at several sizes (parameters without embeddings, counted for the plain student of the same shape,
so that families are compared at equal width and depth) and lengths, each with its own complete schedule. Each family's
test losses are fitted by a power law (`cocomix.experiments.power_law`). What the data can bear is chosen and said: one
law in size and tokens where at least three sizes have at least three lengths each; else a law in tokens alone for each
size with at least four lengths; else nothing.

Intervals are 95 % of a bootstrap over seeds. In each draw every size takes as many seeds as it has, out of all seeds of
all sizes, with their deviations from the mean of their own size: a seed's deviations stay together over families and
lengths, since differences are paired by seed, and a size with a single seed borrows the spread of the others. With few
seeds deviations from a mean are too small; they are widened by sqrt(n / (n - 1)). Intervals hold what seeds vary, not
what another teacher, corpus or form of the law would give: read an extrapolation over orders of magnitude so.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from cocomix.experiments.power_law import PowerLaw, Scale, fit, refit
from cocomix.model.build import ModelShape, build_plain
from cocomix.report.statistics import find_student

DRAWS = 200
FINE = 400
"""Points between the shortest and longest length at which a change of sign is looked for."""

Cell = tuple[str, str, str]
"""Family, size, length."""


class Point(NamedTuple):
    """One student: where it was trained, and its test loss."""

    family: str
    size: str
    length: str
    seed: int
    parameters: float
    tokens: float
    loss: float


def points(results: dict[str, Any]) -> list[Point]:
    """The finished students of the recipe's `scaling` in its setting."""
    asked = results["scaling"]
    setting = results["settings"].get(asked["setting"])
    found = []
    for name, (family, size, length) in asked["students"].items():
        student = find_student(setting, name) if setting else None
        for run in student["runs"] if student else ():
            parameters, tokens = float(asked["parameters"][size]), float(run["tokens"])
            found.append(Point(family, size, length, run["seed"], parameters, tokens, run["test_loss"]))
    return found


def scaling(results: dict[str, Any], draws: int = DRAWS) -> dict[str, Any] | None:
    """The section of the report; None if the recipe asks for none.

    Returns:
        `refused` (one sentence) if the data bear no fit; else `form` (a sentence), `baseline`, `sizes` (parameters by
        name), `points` (mean losses), `laws` and `gains` by family, and `targets`.
    """
    if not results.get("scaling"):
        return None
    asked = results["scaling"]
    measured = points(results)
    refused = refusal(measured, asked["baseline"])
    if refused:
        return {"refused": refused, "baseline": asked["baseline"]}
    return _Study(measured, asked, draws).section()


def parameters_without_embeddings(shape: ModelShape, vocab_size: int, seq_len: int) -> int:
    """Parameters of the plain student of a shape, less those of its token and position embeddings and its head."""
    with torch.device("meta"):
        model = build_plain(shape, vocab_size=vocab_size, seq_len=seq_len)
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings()
    left_out = {id(weight) for weight in [*tables, *([head.weight] if head is not None else [])]}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in left_out)


def refusal(measured: Sequence[Point], baseline: str) -> str | None:
    """Why no law can be fitted, or None."""
    families = list(dict.fromkeys(point.family for point in measured))
    if baseline not in families or len(families) < 2:
        return "No law is fitted: neither gain nor loss, since the baseline and one more family must be finished."
    if joint(measured) or any(_lengths(measured, size) >= 4 for size in _sizes(measured)):
        return None
    has = ", ".join(f"{size}: {_lengths(measured, size)}" for size in _sizes(measured))
    return (
        "No law is fitted: it takes three lengths at each of three sizes, or four lengths at one, of every family;"
        f" lengths finished by all families, by size: {has}."
    )


def joint(measured: Sequence[Point]) -> bool:
    """Whether the data bear one law in size and tokens."""
    return sum(_lengths(measured, size) >= 3 for size in _sizes(measured)) >= 3


def _sizes(measured: Sequence[Point]) -> list[str]:
    by_size = {point.size: point.parameters for point in measured}
    return sorted(by_size, key=lambda size: by_size[size])


def _lengths(measured: Sequence[Point], size: str) -> int:
    """Lengths of a size that every family has finished."""
    families = {point.family for point in measured}
    have = [{point.length for point in measured if (point.family, point.size) == (family, size)} for family in families]
    return len(set.intersection(*have))


class _Study:
    """Means by cell, the laws of every draw, and what follows from them."""

    def __init__(self, measured: Sequence[Point], asked: dict[str, Any], draws: int) -> None:
        self.asked, self.baseline, self.joint = asked, asked["baseline"], joint(measured)
        self.measured = [p for p in measured if self.joint or _lengths(measured, p.size) >= 4]
        self.sizes = {p.size: p.parameters for p in sorted(self.measured, key=lambda p: p.parameters)}
        self.families = list(dict.fromkeys(p.family for p in self.measured))
        self.scale = Scale.of(
            np.array([p.parameters for p in self.measured]), np.array([p.tokens for p in self.measured])
        )
        self.means = cell_means(self.measured)
        self.at = {(p.family, p.size, p.length): (p.parameters, p.tokens) for p in self.measured}
        self.laws: dict[tuple[str, str], PowerLaw] = {}
        drawn = list(bootstrap(self.measured, draws, np.random.default_rng(0)))
        self.drawn: list[dict[tuple[str, str], PowerLaw]] = [{} for _ in drawn]
        for family in self.families:
            for sizes in [list(self.sizes)] if self.joint else [[size] for size in self.sizes]:
                self._fit(family, sizes, drawn)

    def _fit(self, family: str, sizes: list[str], drawn: list[dict[Cell, float]]) -> None:
        """The law of a family at `sizes`, which share it, and that of every draw."""
        cells = [cell for cell in self.means if cell[0] == family and cell[1] in sizes]
        n, d = np.array([self.at[cell] for cell in cells]).T
        law = fit(n, d, np.array([self.means[cell] for cell in cells]), self.scale)
        self.laws |= {(family, size): law for size in sizes}
        if not drawn:
            return
        moved = refit(n, d, np.array([[losses[cell] for cell in cells] for losses in drawn]), law)
        for laws, other in zip(self.drawn, moved, strict=True):
            laws |= {(family, size): other for size in sizes}

    def section(self) -> dict[str, Any]:
        """What the report shows."""
        words = (
            "One law for each family, loss = E + A / N^a + B / D^b, in size N (parameters without embeddings) and"
            " tokens D: at least three sizes have at least three lengths each."
            if self.joint
            else "A law for each family and size, loss = E + B / D^b in tokens D: too few sizes for a law in size."
        )
        seeds = {size: len({p.seed for p in self.measured if p.size == size}) for size in self.sizes}
        return {
            "refused": None,
            "form": words,
            "joint": self.joint,
            "baseline": self.baseline,
            "sizes": self.sizes,
            "scale": self.scale._asdict(),
            "seeds": seeds,
            "draws": len(self.drawn),
            "points": [
                {"family": family, "size": size, "length": length, "loss": loss}
                | dict(zip(("parameters", "tokens"), self.at[family, size, length], strict=True))
                for (family, size, length), loss in self.means.items()
            ],
            "laws": {family: self._law(family) for family in self.families},
            "gains": {family: self._gains(family) for family in self.families if family != self.baseline},
            "targets": [self._target(target) for target in self.asked.get("targets") or ()],
        }

    def _law(self, family: str) -> list[dict[str, Any]]:
        """Parameters of the family's law, or of each size's, with intervals."""
        rows = []
        for size in list(self.sizes)[: 1 if self.joint else None]:
            law = self.laws[family, size]
            names = ("floor", "data", "data_exponent", *(("size", "size_exponent") if self.joint else ()))
            figures = {
                name: interval(getattr(law, name), [getattr(drawn[family, size], name) for drawn in self.drawn])
                for name in names
            }
            errors = [
                loss - float(self.laws[cell[0], cell[1]].loss(*self.at[cell]))
                for cell, loss in self.means.items()
                if cell[0] == family and (self.joint or cell[1] == size)
            ]
            row = {"at": "all" if self.joint else size, "at_limit": law.at_limit}
            rows.append(row | figures | {"rms": math.sqrt(sum(error**2 for error in errors) / len(errors))})
        return rows

    def _gains(self, family: str) -> list[dict[str, Any]]:
        """By size: gain and tokens saved along the lengths, measured gains, and where the gain changes sign."""
        rows = []
        for size, parameters in self.sizes.items():
            tokens = sorted(at[1] for cell, at in self.at.items() if cell[0] == self.baseline and cell[1] == size)
            grid = np.geomspace(tokens[0], tokens[-1], 25)
            middle = self._gain(self.laws, family, size, parameters, grid)
            drawn = [self._gain(laws, family, size, parameters, grid) for laws in self.drawn]
            low, high = np.percentile(drawn, [2.5, 97.5], axis=0) if drawn else (middle, middle)
            rows.append(
                {
                    "size": size,
                    "parameters": parameters,
                    "tokens": grid.tolist(),
                    "tokens_per_parameter": (grid / parameters).tolist(),
                    "gain": middle.tolist(),
                    "low": low.tolist(),
                    "high": high.tolist(),
                    "measured": self._measured(family, size),
                    "ends": [self._end(family, size, parameters, float(end)) for end in (grid[0], grid[-1])],
                    "turns": self._turns(family, size, parameters, grid[0], grid[-1]),
                }
            )
        return rows

    def _gain(
        self, laws: dict[tuple[str, str], PowerLaw], family: str, size: str, parameters: float, tokens: Any
    ) -> np.ndarray:
        """Nats that the family is below the baseline; above 0 is better."""
        return laws[self.baseline, size].loss(parameters, tokens) - laws[family, size].loss(parameters, tokens)

    def _measured(self, family: str, size: str) -> list[dict[str, float]]:
        """The mean gains of what was trained, at the same length."""
        return [
            {"tokens": self.at[cell][1], "gain": self.means[self.baseline, size, cell[2]] - loss}
            for cell, loss in self.means.items()
            if cell[:2] == (family, size) and (self.baseline, size, cell[2]) in self.means
        ]

    def _end(self, family: str, size: str, parameters: float, tokens: float) -> dict[str, Any]:
        """Gain in nats, and the share of the baseline's tokens to its loss, with intervals."""
        nats = [float(self._gain(laws, family, size, parameters, tokens)) for laws in (self.laws, *self.drawn)]
        share = [self._share(laws, family, size, parameters, tokens) for laws in (self.laws, *self.drawn)]
        return {
            "tokens": tokens,
            "gain": interval(nats[0], nats[1:]),
            "token_share": interval(share[0], share[1:]),
        }

    def _share(
        self, laws: dict[tuple[str, str], PowerLaw], family: str, size: str, parameters: float, tokens: float
    ) -> float:
        """Tokens of the family to the baseline's loss, as a share of the baseline's; infinite if never."""
        wanted = float(laws[self.baseline, size].loss(parameters, tokens))
        needed = laws[family, size].tokens_to(wanted, parameters)
        return math.inf if needed is None else needed / tokens

    def _turns(self, family: str, size: str, parameters: float, first: float, last: float) -> dict[str, Any]:
        """Where the gain changes sign within what was trained, in tokens; how many draws agree that it does."""
        found = [self._crossing(laws, family, size, parameters, first, last) for laws in (self.laws, *self.drawn)]
        there = [value for value in found[1:] if value is not None]
        sign = float(self._gain(self.laws, family, size, parameters, last))
        return {
            "tokens": found[0],
            "ci95": np.percentile(there, [2.5, 97.5]).tolist() if there and found[0] is not None else None,
            "share_of_draws": len(there) / len(self.drawn) if self.drawn else None,
            "then": "gain" if sign > 0 else "loss",
        }

    def _crossing(
        self,
        laws: dict[tuple[str, str], PowerLaw],
        family: str,
        size: str,
        parameters: float,
        first: float,
        last: float,
    ) -> float | None:
        grid = np.geomspace(first, last, FINE)
        gains = self._gain(laws, family, size, parameters, grid)
        changes = np.nonzero(np.sign(gains[:-1]) != np.sign(gains[1:]))[0]
        return float(grid[changes[-1] + 1]) if len(changes) else None

    def _target(self, target: dict[str, Any]) -> dict[str, Any]:
        """Perplexity and gain at a size and length far off; only a joint law says anything there."""
        if not self.joint:
            return target | {"families": None}
        largest, n, d = list(self.sizes)[-1], target["parameters"], target["tokens"]
        families = {}
        for family in self.families:
            losses = [float(laws[family, largest].loss(n, d)) for laws in (self.laws, *self.drawn)]
            row = {"perplexity": interval(math.exp(losses[0]), [math.exp(loss) for loss in losses[1:]])}
            if family != self.baseline:
                row |= {key: value for key, value in self._end(family, largest, n, d).items() if key != "tokens"}
            families[family] = row
        beyond = [n / max(self.sizes.values()), d / max(at[1] for at in self.at.values())]
        return target | {"families": families, "beyond": beyond}


def cell_means(measured: Sequence[Point]) -> dict[Cell, float]:
    """Mean loss over seeds of each family, size and length."""
    cells: dict[Cell, list[float]] = {}
    for point in measured:
        cells.setdefault((point.family, point.size, point.length), []).append(point.loss)
    return {cell: math.fsum(losses) / len(losses) for cell, losses in cells.items()}


def bootstrap(measured: Sequence[Point], draws: int, generator: np.random.Generator) -> Iterator[dict[Cell, float]]:
    """Mean losses by cell of `draws` draws of seeds, as the module says; none if no size has two seeds.

    A seed that lacks a cell of its donor's size (another length, a student not finished) adds nothing to that cell.
    """
    means = cell_means(measured)
    cells, seeds = list(means), {size: {p.seed for p in measured if p.size == size} for size in _sizes(measured)}
    donors = [(size, seed) for size, own in seeds.items() if len(own) > 1 for seed in sorted(own)]
    if not donors:
        return
    sizes = list(seeds)
    places = dict.fromkeys((family, length) for family, _, length in cells)
    lengths = {key: place for place, key in enumerate(places)}
    deviations = np.zeros((len(donors), len(lengths)))
    for point in measured:
        if (point.size, point.seed) in donors:
            n = len(seeds[point.size])
            row, column = donors.index((point.size, point.seed)), lengths[point.family, point.length]
            mean = means[point.family, point.size, point.length]
            deviations[row, column] = (point.loss - mean) * math.sqrt(n / (n - 1))
    for _ in range(draws):
        shift = {}
        for size in sizes:
            chosen = generator.integers(len(donors), size=len(seeds[size]))
            shift[size] = deviations[chosen].mean(axis=0)
        yield {cell: means[cell] + float(shift[cell[1]][lengths[cell[0], cell[2]]]) for cell in cells}


def interval(value: float, drawn: Sequence[float]) -> dict[str, Any]:
    """`value` with the 2.5 and 97.5 percentiles of what was drawn; infinite ends are None."""
    ends = None
    if drawn:
        ordered = sorted(drawn)
        places = (math.floor(0.025 * (len(ordered) - 1)), math.ceil(0.975 * (len(ordered) - 1)))
        ends = [ordered[place] if math.isfinite(ordered[place]) else None for place in places]
    return {"value": value if math.isfinite(value) else None, "ci95": ends}
