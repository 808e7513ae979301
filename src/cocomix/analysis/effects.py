"""What a concept does to the next token: from the weights alone, and measured in held-out text.

From the weights: the vector that one concept of weight 1 becomes goes through the mixer, the final norm and the LM
head with no block between. That is the direct path only, as in a logit lens: what the upper blocks make of the vector,
and what they read in it to move elsewhere, is not in it. A mixer whose vectors are only attended to (`keys_values`,
`every`) has no direct path; a gate stands as it does at a hidden state of zero.

Measured: the change of the log-probabilities at the concept's strongest places between the student as it is and with
the concept kept out at every position (`inspect.reading.ablated`), where the next largest one takes its place. All
paths are in it, and nothing but those places.
"""

from typing import Any

import numpy as np
import torch

from cocomix.analysis.concept_index import concept_channel, windows_at_once
from cocomix.analysis.inspect import ablated
from cocomix.model.block_run import BlockRun
from cocomix.model.concept_head import ConceptPrediction


def mixes(student: Any) -> bool:
    """Whether the student mixes its concepts in at all."""
    return concept_channel(student).vector is not None


@torch.no_grad()
def concept_vectors(student: Any, concepts: np.ndarray) -> torch.Tensor:
    """What each of `concepts` int64 `[n]` adds to the mixer's vector at weight 1, `[n, d_model]`."""
    channel = concept_channel(student)
    make = channel.vector
    assert make is not None, "the student mixes its concepts in"
    ids = torch.from_numpy(concepts).to(student.device)[:, None, None]
    one = torch.ones(len(concepts), 1, 1, dtype=student.dtype, device=student.device)
    centre = torch.zeros_like(channel.head.pre_bias)

    def vector(weight: float) -> torch.Tensor:
        return make(ConceptPrediction(None, weight * one, ids, torch.zeros_like(one), one, centre))

    return (vector(1.0) - vector(0.0))[:, 0]


@torch.no_grad()
def promoted(student: Any, concept: int) -> np.ndarray | None:
    """Next-token logits of a slot that holds nothing but `concept`, less those of an empty one, centred, `[vocab]`.

    None where there is no direct path.
    """
    if not mixes(student):
        return None
    reached = _direct(student, concept_vectors(student, np.array([concept])))
    if not bool(reached.any()):
        return None
    logits = _read_out(student, reached) - _read_out(student, torch.zeros_like(reached))
    return (logits - logits.mean(-1, keepdim=True))[0].cpu().numpy()


@torch.no_grad()
def measured(student: Any, concept: int, ids: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
    """Mean change of the log-probability of each next token that `concept` makes at some places, nats, `[vocab]`.

    Hooks are set on the student meanwhile: nobody else may run it. None without places or where nothing is mixed in.

    Args:
        ids: windows, int64 `[n, seq]`; what comes after the places is not read.
        positions: the place in each, int64 `[n]`.
    """
    if not mixes(student) or not len(ids):
        return None
    order = np.argsort(positions, kind="stable")  # windows of a pass end at the last of their places
    at_once = windows_at_once(concept_channel(student).head.proj.out_features, int(positions.max()) + 1)
    changes = []
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        places = torch.from_numpy(positions[rows]).to(student.device)
        tokens = torch.from_numpy(ids[rows, : int(places.max()) + 1]).to(student.device)
        as_it_is = _log_probabilities(student, tokens, places)
        with ablated(student, concept):
            changes.append((as_it_is - _log_probabilities(student, tokens, places)).cpu())
    return torch.cat(changes).mean(0).numpy()


def _direct(student: Any, vectors: torch.Tensor) -> torch.Tensor:
    """What of `vectors` `[n, d_model]` stands before the final norm with no block between, `[n, d_model]`."""
    positions = torch.zeros(1, 1, dtype=torch.int64, device=vectors.device)
    empty = torch.zeros_like(vectors)[:, None]

    def through(vector: torch.Tensor) -> torch.Tensor:
        return student.mixer(empty, vector, BlockRun([], student.backbone, positions, None, 0, None, None))

    return (through(vectors[:, None]) - through(empty))[:, 0]


def _read_out(student: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _wide(student.lm_head(student.backbone.final_norm(hidden)))


def _log_probabilities(student: Any, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of the token after each row's place, `[rows, vocab]`."""
    kept, which = places.unique(return_inverse=True)
    logits = student(input_ids=tokens, use_cache=False, logits_to_keep=kept).logits
    return _wide(logits[torch.arange(len(tokens), device=tokens.device), which]).log_softmax(-1)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
