"""Loss as a power law of size and tokens, fitted robustly: loss = E + A / N^a + B / D^b.

N and D are measured in units of `Scale`, so that A and B are losses at a typical point and the fit is well conditioned.
With one size the term in N is left out: loss = E + B / D^b. The starting point is the best of a grid of exponents; for
each pair of them E, A and B are linear and not negative, so least squares has one solution. From there all parameters
are refined together by a robust loss (soft L1), in which a student that failed to train weighs little.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares, nnls

EXPONENTS = np.linspace(0.05, 1.5, 12)
LIMITS = (0.01, 3.0)
"""Of an exponent; a fit that ends at one does not know it."""
ROBUST = 0.02
"""Nats from which a residual counts less than its square."""

Array = np.ndarray


class Scale(NamedTuple):
    """Units of size (parameters without embeddings) and training (tokens)."""

    parameters: float
    tokens: float

    @classmethod
    def of(cls, parameters: Array, tokens: Array) -> "Scale":
        """The geometric means of what was trained."""
        return cls(float(np.exp(np.log(parameters).mean())), float(np.exp(np.log(tokens).mean())))


@dataclass(frozen=True)
class PowerLaw:
    """E + A (N / N0)^-a + B (D / D0)^-b, in nats a token.

    Attributes:
        floor: E, the loss that neither size nor tokens take away.
        size, size_exponent: A and a; 0 where sizes were not told apart.
        data, data_exponent: B and b.
        scale: N0 and D0.
    """

    floor: float
    size: float
    size_exponent: float
    data: float
    data_exponent: float
    scale: Scale

    def loss(self, parameters: Array | float, tokens: Array | float) -> Array:
        """Nats a token at a size and a length."""
        by_size = self.size * (np.asarray(parameters) / self.scale.parameters) ** -self.size_exponent
        return self.floor + by_size + self.data * (np.asarray(tokens) / self.scale.tokens) ** -self.data_exponent

    def tokens_to(self, loss: float, parameters: float) -> float | None:
        """Tokens after which a student of this size has `loss`; None if it never has."""
        left = loss - float(self.loss(parameters, np.inf))
        if left <= 0 or self.data <= 0:
            return None
        return self.scale.tokens * math.exp(math.log(self.data / left) / self.data_exponent)

    @property
    def at_limit(self) -> bool:
        """Whether an exponent ended where it was bounded."""
        exponents = [self.data_exponent, *([self.size_exponent] if self.size else [])]
        return any(not LIMITS[0] * 1.01 < exponent < LIMITS[1] * 0.99 for exponent in exponents)


def fit(parameters: Array, tokens: Array, losses: Array, scale: Scale) -> PowerLaw:
    """The law of these students.

    Args:
        parameters: without embeddings, one a student; all equal for a law of one size.
        tokens: trained on, one a student.
        losses: in nats a token.
        scale: units.
    """
    log_n, log_d, joint = _logs(parameters, tokens, scale)
    first = _grid(log_n, log_d, losses, joint)
    lows, highs = _bounds(joint)
    found = least_squares(
        lambda vector: _terms(vector, log_n, log_d).sum(axis=-2) - losses,
        np.clip(first, lows + 1e-9, highs - 1e-9),
        jac=lambda vector: _jacobian(vector, log_n, log_d),  # pyright: ignore[reportArgumentType]
        bounds=(lows, highs),
        loss="soft_l1",
        f_scale=ROBUST,
        x_scale="jac",
    ).x
    return _law(found, scale)


STEPS = 60
"""Of refinement from a start that is near; far more than it takes."""


def refit(parameters: Array, tokens: Array, losses: Array, start: PowerLaw) -> list[PowerLaw]:
    """The laws of many draws of nearly the same losses, `[draws, students]`, all at once.

    Levenberg-Marquardt from `start` on the same robust loss as `fit`, with the weights that are its slope.
    """
    log_n, log_d, joint = _logs(parameters, tokens, start.scale)
    lows, highs = _bounds(joint)
    found = np.tile(np.clip(_vector(start, joint), lows, highs), (len(losses), 1))
    damping, cost = np.full(len(losses), 1e-3), np.full(len(losses), np.inf)
    residuals = _terms(found, log_n, log_d).sum(axis=-2) - losses
    cost = _cost(residuals)
    for _ in range(STEPS):
        slopes = _jacobian(found, log_n, log_d)
        weighted = slopes / np.sqrt(1 + (residuals / ROBUST) ** 2)[..., None]
        normal = np.einsum("dsp,dsq->dpq", weighted, slopes)
        diagonal = np.einsum("dpp->dp", normal) + 1e-12
        damped = normal + np.einsum("d,dp,pq->dpq", damping, diagonal, np.eye(found.shape[1]))
        gradient = np.einsum("dsp,ds->dp", weighted, residuals)
        step = np.linalg.solve(damped + 1e-12 * np.eye(found.shape[1]), gradient[..., None])[..., 0]
        trial = np.clip(found - step, lows, highs)
        there = _terms(trial, log_n, log_d).sum(axis=-2) - losses
        better = _cost(there) < cost
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-10, 1e8)
        found[better], residuals[better] = trial[better], there[better]
        cost = _cost(residuals)
    return [_law(vector, start.scale) for vector in found]


def _cost(residuals: Array) -> Array:
    return (np.sqrt(1 + (residuals / ROBUST) ** 2) - 1).sum(axis=-1)


def _logs(parameters: Array, tokens: Array, scale: Scale) -> tuple[Array, Array, bool]:
    """Logarithms in the units of `scale`, and whether sizes differ."""
    log_n = np.log(parameters / scale.parameters)
    return log_n, np.log(tokens / scale.tokens), bool(np.ptp(log_n) > 0)


def _law(vector: Array, scale: Scale) -> PowerLaw:
    terms = [math.exp(vector[0]), math.exp(vector[1]), float(vector[2])]
    size, size_exponent = (math.exp(vector[3]), float(vector[4])) if len(vector) > 3 else (0.0, 0.0)
    return PowerLaw(terms[0], size, size_exponent, terms[1], terms[2], scale)


def _jacobian(vector: Array, log_n: Array, log_d: Array) -> Array:
    """Slopes of the law at each student, `[..., students, parameters]`."""
    terms = _terms(vector, log_n, log_d)
    columns = [terms[..., 0, :], terms[..., 1, :], -terms[..., 1, :] * log_d]
    if vector.shape[-1] > 3:
        columns += [terms[..., 2, :], -terms[..., 2, :] * log_n]
    return np.stack(columns, axis=-1)


def _terms(vector: Array, log_n: Array, log_d: Array) -> Array:
    """E, the term of tokens, and the term of size, `[..., terms, students]`; of log E, log B, b, log A, a."""
    parts = vector[..., None]
    rows = [np.exp(parts[..., 0, :] + 0 * log_d), np.exp(parts[..., 1, :] - parts[..., 2, :] * log_d)]
    if vector.shape[-1] > 3:
        rows.append(np.exp(parts[..., 3, :] - parts[..., 4, :] * log_n))
    return np.stack(rows, axis=-2)


def _bounds(joint: bool) -> tuple[Array, Array]:
    terms = 2 if joint else 1
    low, high = LIMITS
    return np.array([-12.0, *[-12.0, low] * terms]), np.array([4.0, *[4.0, high] * terms])


def _vector(law: PowerLaw, joint: bool) -> Array:
    """The parameters that are refined; what is 0 has no logarithm and is given a small one."""

    def log(value: float) -> float:
        return math.log(max(value, 1e-5))

    size = [log(law.size), law.size_exponent] if joint else []
    return np.array([log(law.floor), log(law.data), law.data_exponent, *size])


def _grid(log_n: Array, log_d: Array, losses: Array, joint: bool) -> Array:
    """The best of a grid of exponents, each with its E, B and A by least squares that are not negative."""
    best, found = math.inf, None
    for b in EXPONENTS:
        for a in EXPONENTS if joint else (0.0,):
            columns = [np.ones_like(log_d), np.exp(-b * log_d), *([np.exp(-a * log_n)] if joint else [])]
            weights, residual = nnls(np.stack(columns, axis=1), losses)
            if residual < best:
                best, found = residual, (weights, b, a)
    assert found is not None
    weights, b, a = found
    size = weights[2] if joint else 0.0
    return _vector(PowerLaw(weights[0], size, a, weights[1], b, Scale(1.0, 1.0)), joint)
