"""Dashboards in the form that Neuronpedia imports.

Neuronpedia's importer reads a folder MODEL/SOURCE: `release.jsonl`, `model.jsonl`, `sourceset.jsonl` and `source.jsonl`
say what the features belong to; `features/`, `activations/` and `explanations/` hold batches of rows, gzipped, a JSON
object a line. A key of a row is a column of its database (tables Neuron, Activation and Explanation), all rows of a
file have the same keys, and columns that are left out get the database's defaults. A feature is found by modelId,
layer (which is the SOURCE) and index.

A concept becomes a feature: its activation is the student's strength where the concept is mixed in (the logit over the
position's largest logit magnitude), 0 elsewhere; its explanation is its name. Identifiers of rows are checksums of what
the row is of, so importing twice adds nothing.
"""

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cocomix.analysis.concept_index import BATCH, EDGES, PLACES, concept_channel, predictions, windows_at_once
from cocomix.analysis.dashboards import Dashboard, Dashboards, direct_effect
from cocomix.utils.files import sha256_of, write_bytes, write_text

SOURCE_SET = "cocomix-concepts"
CREATOR = "clkht01d40000jv08hvalcvly"
"""The user to whom Neuronpedia's own tools assign what they import."""
CONTEXT = 128
"""Tokens of an activation example at most."""
BATCH_ROWS = 128
"""Features of a file."""
LOGIT_BINS = 40
TOP = -1.0
"""Neuronpedia's mark of examples that are the strongest ones, not drawn from an interval: `binMin`, `binContains`."""


class Origin(NamedTuple):
    """What the concepts belong to."""

    title: str
    """the student, in words"""
    model: str
    """Neuronpedia's id of the model; see `model_id`"""
    layers: int
    concept_layer: int
    """block (0-based) before which concepts are predicted"""
    text: str
    """the text the examples are from, in words"""
    rule: str
    """how the concepts were chosen"""
    creator: str = CREATOR

    @property
    def source(self) -> str:
        """Neuronpedia's id of the set of features at this layer."""
        return f"{self.concept_layer}-{SOURCE_SET}"


def model_id(words: str) -> str:
    """A name in the form of Neuronpedia's ids of models: lower-case letters, digits, hyphens and underscores."""
    return re.sub(r"[^a-z0-9_]+", "-", words.lower()).strip("-")[:128] or "cocomix"


def write_neuronpedia(folder: Path, dashboards: Dashboards, chosen: Sequence[Dashboard], origin: Origin) -> Path:
    """Write `chosen` dashboards below `folder`; returns the folder that the importer reads.

    Args:
        dashboards: what they were made by; the student runs over the windows of their strongest places.
    """
    target = folder / origin.model / origin.source
    for part in ("features", "activations", "explanations"):
        (target / part).mkdir(parents=True, exist_ok=True)
    for name, row in _about(dashboards, origin).items():
        write_text(target / f"{name}.jsonl", _lines([row]))
    for number, start in enumerate(range(0, len(chosen), BATCH_ROWS)):
        batch = chosen[start : start + BATCH_ROWS]
        examples = _examples(dashboards, batch, origin)
        features = [_feature(dashboards, one, examples[one.concept], origin) for one in batch]
        activations = [row for one in batch for row in examples[one.concept]]
        explanations = [_explanation(one, origin) for one in batch if one.about.name]
        for part, rows in (("features", features), ("activations", activations), ("explanations", explanations)):
            if rows:  # the importer takes the columns from the first line
                packed = gzip.compress(_lines(rows).encode(), mtime=0)
                write_bytes(target / part / f"batch-{number}.jsonl.gz", packed)
    return target


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _about(dashboards: Dashboards, origin: Origin) -> dict[str, dict[str, Any]]:
    """The four files that say what the features belong to."""
    statistics, release = dashboards.statistics, f"cocomix-{origin.model}"
    owned = {"creatorId": origin.creator, "visibility": "PUBLIC"}
    described = f"Concepts of {origin.title}, predicted before block {origin.concept_layer} (0-based)"
    return {
        "release": owned
        | {
            "name": release,
            "description": described,
            "descriptionShort": described,
            "creatorName": "cocomix",
            "creatorNameShort": "cocomix",
            "urls": [],
        },
        "model": owned
        | {
            "id": origin.model,
            "displayName": origin.title,
            "displayNameShort": origin.title,
            "instruct": False,
            "inferenceEnabled": False,
            "layers": origin.layers,
            "neuronsPerLayer": 0,
            "owner": "cocomix",
        },
        "sourceset": owned
        | {
            "modelId": origin.model,
            "name": SOURCE_SET,
            "description": described,
            "creatorName": "cocomix",
            "releaseName": release,
            "type": "CoCoMix concepts",
            "urls": [],
            "hasDashboards": True,
        },
        "source": owned
        | {
            "id": origin.source,
            "modelId": origin.model,
            "setName": SOURCE_SET,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "dataset": origin.text,
            "num_prompts": statistics.windows,
            "num_tokens_in_prompt": statistics.key.seq_len,
            "notes": f"{origin.rule} Activations are strengths: the concept's logit over the position's largest logit"
            " magnitude, where it is mixed in. Logits are those of the direct path from the weights; where the mixer"
            " has none, the measured change of log-probabilities, in nats.",
        },
    }


def _feature(
    dashboards: Dashboards, one: Dashboard, examples: Sequence[dict[str, Any]], origin: Origin
) -> dict[str, Any]:
    direct = direct_effect(dashboards.student, one.concept)
    heights, edges = (np.zeros(0), np.zeros(0)) if direct is None else np.histogram(direct, LOGIT_BINS)
    effects = one if direct is not None or one.measured is None else one.measured
    return _of(one, origin) | {
        "creatorId": origin.creator,
        "sourceSetName": SOURCE_SET,
        "maxActApprox": max((row["maxValue"] for row in examples), default=0.0),
        "frac_nonzero": one.predicted.share,
        "pos_str": [effect.token for effect in effects.promotes],
        "pos_values": [effect.effect for effect in effects.promotes],
        "neg_str": [effect.token for effect in effects.suppresses],
        "neg_values": [effect.effect for effect in effects.suppresses],
        "freq_hist_data_bar_values": _middles(EDGES),
        "freq_hist_data_bar_heights": [float(count) for count in one.predicted.histogram.counts],
        "logits_hist_data_bar_values": _middles(edges),
        "logits_hist_data_bar_heights": [float(height) for height in heights],
        "topkCosSimIndices": [other.concept for other in one.similar],
        "topkCosSimValues": [other.cosine for other in one.similar],
    }


def _explanation(one: Dashboard, origin: Origin) -> dict[str, Any]:
    known = one.about
    how = {"tokens": "by the tokens that set it apart", "llm": "by a program", "edited": "by hand", None: ""}
    stability = "" if known.stability is None else f"; stability {known.stability:.2f}"
    return _of(one, origin) | {
        "id": _id(origin, one.concept, "name"),
        "authorId": origin.creator,
        "description": known.name,
        "notes": f"named {how[known.source]}{stability}",
    }


def _of(one: Dashboard, origin: Origin) -> dict[str, Any]:
    return {"modelId": origin.model, "layer": origin.source, "index": str(one.concept)}


def _id(origin: Origin, *what: object) -> str:
    return "c" + sha256_of(json.dumps([origin.model, origin.source, *what]))[:24]


def _middles(edges: np.ndarray) -> list[float]:
    return ((edges[:-1] + edges[1:]) / 2).round(6).tolist()


def _examples(dashboards: Dashboards, chosen: Sequence[Dashboard], origin: Origin) -> dict[int, list[dict[str, Any]]]:
    """Rows of activations of each concept: its strongest places, strongest first, at most one a window."""
    statistics, shards, seq_len = dashboards.statistics, dashboards.shards, dashboards.statistics.key.seq_len
    places = {one.concept: statistics.places_of(one.concept, PLACES)[0][:, :2].tolist() for one in chosen}
    wanted: dict[int, list[int]] = {}  # concepts by window
    for concept, found in places.items():
        for window, _ in found:
            wanted.setdefault(window, []).append(concept)
    values: dict[tuple[int, int], np.ndarray] = {}  # strengths `[seq]` by concept and window
    at_once = min(BATCH, windows_at_once(concept_channel(dashboards.student).head.num_concepts, seq_len))
    windows = sorted(wanted)
    for start in range(0, len(windows), at_once):
        some = windows[start : start + at_once]
        ids = torch.from_numpy(shards.windows(np.array(some), seq_len)).to(dashboards.student.device)
        concepts, _, strengths = predictions(dashboards.student, ids)
        for row, window in enumerate(some):
            for concept in wanted[window]:
                values[concept, window] = np.where(concepts[row] == concept, strengths[row], 0.0).sum(-1)
    return {
        concept: [
            _activation(dashboards, one, origin, rank, window, position, values[concept, window])
            for rank, (window, position) in enumerate(places[concept])
        ]
        for one in chosen
        for concept in (one.concept,)
    }


def _activation(
    dashboards: Dashboards, one: Dashboard, origin: Origin, rank: int, window: int, position: int, values: np.ndarray
) -> dict[str, Any]:
    seq_len = len(values)
    first = max(0, min(position - CONTEXT // 2, seq_len - CONTEXT))
    ids = dashboards.shards.windows(np.array([window]), seq_len)[0, first : first + CONTEXT].tolist()
    shown = [round(float(value), 6) for value in values[first : first + CONTEXT]]
    largest = shown.index(max(shown))
    return _of(one, origin) | {
        "id": _id(origin, one.concept, "example", rank),
        "creatorId": origin.creator,
        "tokens": [dashboards.decode([token]) for token in ids],
        "values": shown,
        "maxValue": shown[largest],
        "maxValueTokenIndex": largest,
        "minValue": min(shown),
        "qualifyingTokenIndex": position - first,
        "binMin": TOP,
        "binMax": float(one.predicted.passages[0].strength),
        "binContains": TOP,
    }
