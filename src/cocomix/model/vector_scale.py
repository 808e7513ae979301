"""How large the predicted vector is at the start: `vector_scale`, a share of the rms of its token's hidden state.

As the reference has it, the vector's size follows from the width, from K and C and from `initializer_range`: a
thirtieth of the hidden state in a small student, a fifth in the paper's. With `vector_scale` it does not. A predictor
initialises its last projection so that the vector has the rms of the hidden state, by the rules below, and multiplies
it by one learned number, `scale`, which starts at `vector_scale`.

Choices:
- Initialisation and one factor, and no normalisation in the forward pass: the vector stays a sum over K rows, a larger
  logit adds more, and steering a concept does not rescale the others.
- The rules read the weights below the projection as they were drawn, so they hold for any `initializer_range`. They are
  right for the mean square over draws of the weights; a single token's is near it.
- `mean` and `std`, which the reference gives back to the vector, are multiplied by the scale, too; else the mean alone
  would be larger than a small vector in a narrow student.
- A vector that is not given back the hidden state's std (`ncp`) is multiplied by its rms. One that is no prediction
  (`pause`) is divided by its own rms besides, because nothing in its size is worth keeping.
"""

import math
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import nn


def unit_std(squares: float) -> float:
    """Standard deviation of weights whose sum, over inputs with these squares in all, has an rms of 1."""
    return squares**-0.5 if squares > 0 else 0.0


def mean_square(weight: torch.Tensor) -> float:
    """Mean square of a weight's elements; 1 on the meta device, where there are none."""
    return 1.0 if weight.is_meta else float(weight.detach().double().square().mean())


def logit_variance(projection: nn.Linear) -> float:
    """Variance of a new projection's outputs over normalised hidden states, whose squares add up to d - 1."""
    return (projection.in_features - 1) * mean_square(projection.weight)


def largest_squares(n: int, k: int) -> float:
    """Expected sum of the squares of the `k` largest of `n` standard normal numbers, for large n.

    n * (integral of z^2 p(z) above t) = k + n t p(t), where a share k / n lies above t.
    """
    if k == n:
        return float(n)
    normal = NormalDist()
    threshold = normal.inv_cdf(1 - k / n)
    return k + n * threshold * normal.pdf(threshold)


def gelu_square(variance: float) -> float:
    """Expected square of gelu(u) for normal u of that variance, by the trapezoid rule."""
    z = torch.linspace(-8, 8, 3201, dtype=torch.float64, device="cpu")
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(F.gelu(math.sqrt(variance) * z).square() * density, z))


def softmax_squares(n: int, variance: float) -> float:
    """Expected sum of squared probabilities of a softmax over `n` normal logits of that variance, by 500 draws."""
    drawn = torch.randn(500, n, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return float((math.sqrt(variance) * drawn).softmax(-1).square().sum(-1).mean())
