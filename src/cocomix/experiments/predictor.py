"""A predictor of the gain, written down before the runs that it is tested on.

A committed file (`PredictorFile`) says by which coefficients the gain in nats follows from what is known before a
student is trained:

- `predictability`: nats a label that the labels can be predicted above their marginal (`cocomix label
  --predictability`), the mean over its sets of a student with several;
- `teacher_minus_student`: the teacher's validation loss less that of the baseline of equal size and length, nats a
  token;
- `tokens_per_parameter`: log10 of tokens over parameters without embeddings.

The report gives its rank correlation (Spearman's) with the measured gains, over all cases (setting and variant), and
the p-value of a permutation test: how often cases in a random order correlate as strongly, on either side. A case that
the coefficients were fitted on would be no test, so then nothing is reported but that.
"""

import hashlib
from collections.abc import Sequence
from itertools import permutations
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator
from scipy.stats import rankdata

from cocomix.report.statistics import find_student, loss_pairs
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import Section, read_yaml, validate

FEATURES = ("predictability", "teacher_minus_student", "tokens_per_parameter")
EXACT = 7
"""Cases up to which every order is tried."""
ORDERS = 20_000
"""Random orders of more."""


class PredictorFile(Section):
    """Coefficients, and what they were fitted on."""

    written: str = Field(description="date on which it was written down")
    why: str = Field(default="", description="where the coefficients come from, in words")
    fitted_on: tuple[str, ...] = Field(
        default=(), description="SETTING or SETTING/VARIANT whose measured gains chose them; empty: none"
    )
    intercept: float = Field(default=0.0, allow_inf_nan=False, description="nats")
    coefficients: dict[str, float] = Field(min_length=1, description=f"by feature: {', '.join(FEATURES)}")

    @field_validator("coefficients")
    @classmethod
    def _are_features(cls, coefficients: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in coefficients if name not in FEATURES]
        if unknown:
            raise ValueError(f"there is no feature {unknown[0]!r}; there are: {', '.join(FEATURES)}")
        return coefficients

    def predicted(self, features: dict[str, float]) -> float:
        """The gain in nats."""
        return self.intercept + sum(weight * features[name] for name, weight in self.coefficients.items())


def read_predictor(path: Path) -> dict[str, Any]:
    """The file's content, with its checksum, for the report's raw results.

    Raises:
        CocomixError: it is not there, or does not validate.
    """
    if not path.is_file():
        raise CocomixError(f"the predictor {path} is not there; name its file, relative to where the command is run")
    content = validate(PredictorFile, read_yaml(path), str(path)).model_dump(mode="json")
    return content | {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def prediction(results: dict[str, Any]) -> dict[str, Any] | None:
    """The section of the report; None if the recipe names no predictor.

    Returns:
        `refused` (a sentence) or None, `cases`, `missing` (cases without a feature or a gain, each with the reason),
        and, of two cases or more, `rho`, `p` and `n`.
    """
    asked = results.get("predictor")
    if not asked:
        return None
    file = PredictorFile.model_validate({key: asked[key] for key in PredictorFile.model_fields})
    known = [case for case in asked["cases"] if _fitted(case, file)]
    if known:
        names = ", ".join(f"{case['setting']}/{case['variant']}" for case in known)
        return {
            "refused": f"Nothing is reported of the predictor {asked['file']}: it was fitted on {names}, which would"
            " test it on what it has seen; leave these cases out, or write a predictor that was not fitted on them."
        }
    cases, missing = [], []
    for case in asked["cases"]:
        why, gains = None, loss_pairs(results["settings"][case["setting"]], case["baseline"], case["variant"])
        lacking = [name for name in file.coefficients if case["features"].get(name) is None]
        if lacking:
            why = f"{', '.join(lacking)} not measured"
        elif not gains:
            why = f"no seed of it and {case['baseline']} is finished"
        if why:
            missing.append(case | {"why": why})
        else:
            gain = sum(gains.values()) / len(gains)
            cases.append(case | {"predicted": file.predicted(case["features"]), "gain": gain, "seeds": len(gains)})
    return {"refused": None, "cases": cases, "missing": missing} | rank_correlation(
        [case["predicted"] for case in cases], [case["gain"] for case in cases]
    )


def _fitted(case: dict[str, Any], file: PredictorFile) -> bool:
    return bool({case["setting"], f"{case['setting']}/{case['variant']}"} & set(file.fitted_on))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Spearman's `rho`, the two-sided permutation `p` and `n`; both None where ranks do not vary."""
    n = len(first)
    ranks = [rankdata(values) - (n + 1) / 2 for values in (first, second)] if n else [np.zeros(0)] * 2
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    if n < 2 or scale == 0:
        return {"rho": None, "p": None, "n": n}
    rho = float(ranks[0] @ ranks[1]) / scale
    if n <= EXACT:
        orders = np.array(list(permutations(range(n))))
        assert len(orders) == factorial(n)
    else:
        generator = np.random.default_rng(0)
        orders = np.stack([np.arange(n), *(generator.permutation(n) for _ in range(ORDERS))])
    others = ranks[0] @ ranks[1][orders].T / scale
    return {"rho": rho, "p": float((np.abs(others) >= abs(rho) - 1e-12).mean()), "n": n}


def case_baseline(results: dict[str, Any], setting: str, variant: str) -> str:
    """What a variant's gain is measured from: the family's student of its size and length, else the baseline."""
    asked = results.get("scaling")
    if asked and asked["setting"] == setting and variant in asked["students"]:
        _, size, length = asked["students"][variant]
        wanted = [asked["baseline"], size, length]
        return next(name for name, place in asked["students"].items() if place == wanted)
    return results["settings"][setting]["baseline"]


def student_loss(setting: dict[str, Any], name: str) -> float | None:
    """Mean validation loss of a student over its seeds."""
    student = find_student(setting, name)
    return None if student is None else sum(run["val_loss"] for run in student["runs"]) / len(student["runs"])
