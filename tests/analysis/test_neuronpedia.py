"""What is written is what Neuronpedia's importer takes, read by the rules of its database and of its importer.

The tables below are an independent description: column, type, and whether a row must give it because the database has
no default for it.
"""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.analysis import Dashboards, direct_effect
from cocomix.analysis import neuronpedia as module
from cocomix.analysis.concept_index import EDGES
from cocomix.analysis.neuronpedia import Origin, model_id, write_neuronpedia
from tests.helpers.small_index import SEQ, WINDOWS, C, Labels, corpus, decode, names, statistics, student

T, I, F, B, TS, IS, FS = "text", "int", "float", "bool", "text[]", "int[]", "float[]"  # noqa: E741
GIVEN, DEFAULT = True, False
TABLES: dict[str, dict[str, tuple[str, bool]]] = {
    "SourceRelease": {
        "name": (T, GIVEN), "visibility": (T, DEFAULT), "isNewUi": (B, DEFAULT), "featured": (B, DEFAULT),
        "description": (T, GIVEN), "descriptionShort": (T, DEFAULT), "urls": (TS, GIVEN), "creatorEmail": (T, DEFAULT),
        "creatorName": (T, GIVEN), "creatorNameShort": (T, DEFAULT), "creatorId": (T, GIVEN),
        "defaultSourceSetName": (T, DEFAULT), "defaultSourceId": (T, DEFAULT), "createdAt": (T, DEFAULT),
    },
    "Model": {
        "id": (T, GIVEN), "displayNameShort": (T, DEFAULT), "displayName": (T, DEFAULT), "creatorId": (T, GIVEN),
        "tlensId": (T, DEFAULT), "dimension": (I, DEFAULT), "visibility": (T, DEFAULT),
        "inferenceEnabled": (B, DEFAULT), "instruct": (B, DEFAULT), "layers": (I, GIVEN),
        "neuronsPerLayer": (I, GIVEN), "owner": (T, GIVEN), "website": (T, DEFAULT),
    },
    "SourceSet": {
        "modelId": (T, GIVEN), "name": (T, GIVEN), "hasDashboards": (B, DEFAULT), "visibility": (T, DEFAULT),
        "description": (T, GIVEN), "type": (T, DEFAULT), "creatorName": (T, GIVEN), "urls": (TS, DEFAULT),
        "creatorEmail": (T, DEFAULT), "creatorId": (T, GIVEN), "releaseName": (T, DEFAULT),
    },
    "Source": {
        "id": (T, GIVEN), "modelId": (T, GIVEN), "hasDashboards": (B, DEFAULT), "inferenceEnabled": (B, DEFAULT),
        "visibility": (T, DEFAULT), "setName": (T, GIVEN), "creatorId": (T, GIVEN), "num_prompts": (I, DEFAULT),
        "num_tokens_in_prompt": (I, DEFAULT), "dataset": (T, DEFAULT), "notes": (T, DEFAULT), "hfRepoId": (T, DEFAULT),
    },
    "Neuron": {
        "modelId": (T, GIVEN), "layer": (T, GIVEN), "index": (T, GIVEN), "sourceSetName": (T, DEFAULT),
        "creatorId": (T, DEFAULT), "maxActApprox": (F, DEFAULT), "topkCosSimIndices": (IS, DEFAULT),
        "topkCosSimValues": (FS, DEFAULT), "neg_str": (TS, DEFAULT), "neg_values": (FS, DEFAULT),
        "pos_str": (TS, DEFAULT), "pos_values": (FS, DEFAULT), "frac_nonzero": (F, DEFAULT),
        "freq_hist_data_bar_heights": (FS, DEFAULT), "freq_hist_data_bar_values": (FS, DEFAULT),
        "logits_hist_data_bar_heights": (FS, DEFAULT), "logits_hist_data_bar_values": (FS, DEFAULT),
    },
    "Activation": {
        "id": (T, GIVEN), "tokens": (TS, GIVEN), "index": (T, GIVEN), "layer": (T, GIVEN), "modelId": (T, GIVEN),
        "maxValue": (F, GIVEN), "maxValueTokenIndex": (I, GIVEN), "minValue": (F, GIVEN), "values": (FS, GIVEN),
        "creatorId": (T, GIVEN), "binMin": (F, DEFAULT), "binMax": (F, DEFAULT), "binContains": (F, DEFAULT),
        "qualifyingTokenIndex": (I, DEFAULT),
    },
    "Explanation": {
        "id": (T, GIVEN), "modelId": (T, GIVEN), "layer": (T, GIVEN), "index": (T, GIVEN), "description": (T, GIVEN),
        "authorId": (T, GIVEN), "notes": (T, DEFAULT), "typeName": (T, DEFAULT), "explanationModelName": (T, DEFAULT),
    },
}  # fmt: skip
TYPES = {T: str, I: int, F: (int, float), B: bool, TS: str, IS: int, FS: (int, float)}
USER = "clkht01d40000jv08hvalcvly"


def checked(table: str, row: dict[str, Any]) -> dict[str, Any]:
    columns = TABLES[table]
    assert row.keys() <= columns.keys(), row.keys() - columns.keys()
    assert not {name for name, (_, given) in columns.items() if given} - row.keys()
    for name, value in row.items():
        kind = columns[name][0]
        for one in value if kind.endswith("[]") else [value]:
            assert isinstance(one, TYPES[kind]) and isinstance(one, bool) == (kind == B), (table, name, one)
    return row


def imported(folder: Path, table: str) -> list[dict[str, Any]]:
    """Rows of all batches, with the columns of each file's first line, as the importer inserts them."""
    rows = []
    for path in sorted(folder.glob("batch-*.jsonl.gz")):
        lines = gzip.decompress(path.read_bytes()).decode().replace("\\u0000", " ").strip().split("\n")
        columns = json.loads(lines[0]).keys()
        for line in lines:
            assert json.loads(line).keys() == columns
            rows.append(checked(table, json.loads(line)))
    return rows


def read(folder: Path, model: str, source: str) -> dict[str, list[dict[str, Any]]]:
    """Everything as the database holds it then; what a row refers to must be there before it."""
    target = folder / model / source
    found = {
        table: [checked(table, json.loads(line)) for line in (target / f"{name}.jsonl").read_text().strip().split("\n")]
        for name, table in (
            ("release", "SourceRelease"), ("model", "Model"), ("sourceset", "SourceSet"), ("source", "Source"),
        )
    }  # fmt: skip
    for part, table in (("features", "Neuron"), ("activations", "Activation"), ("explanations", "Explanation")):
        found[table] = imported(target / part, table)
    (release,), (about,), (group,), (of,) = (
        found[table] for table in ("SourceRelease", "Model", "SourceSet", "Source")
    )
    assert about["id"] == model and of["id"] == source and group["releaseName"] == release["name"]
    assert group["modelId"] == of["modelId"] == model and of["setName"] == group["name"]
    features = {(row["modelId"], row["layer"], row["index"]) for row in found["Neuron"]}
    assert len(features) == len(found["Neuron"])
    for row in found["Neuron"]:
        assert (row["modelId"], row["layer"], row["sourceSetName"]) == (model, source, group["name"])
    for row in [*found["Activation"], *found["Explanation"]]:
        assert (row["modelId"], row["layer"], row["index"]) in features
    for table in ("Activation", "Explanation"):
        assert len({row["id"] for row in found[table]}) == len(found[table])
    owners = {row.get("creatorId", row.get("authorId")) for rows in found.values() for row in rows}
    assert owners == {USER}
    return found


@torch.no_grad()
def strengths_alone(model: Any, ids: list[int]) -> list[dict[int, float]]:
    """Of a window run alone: at each position the K largest logits over the largest magnitude, by concept."""
    strengths = []
    for row in model.channel.head.logits(model.hidden_state(torch.tensor([ids]), top=False))[0].tolist():
        largest = sorted(range(C), key=lambda concept: -row[concept])[: model.config.concept_top_k]
        strengths.append({concept: row[concept] / max(map(abs, row)) for concept in largest})
    return strengths


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dashboards:
    model, shards = student(), corpus(tmp_path_factory.mktemp("text") / "s")
    return Dashboards(statistics(model, shards, Labels()), model, shards, decode)


ORIGIN = Origin(
    title="A student", model="a-student", layers=3, concept_layer=1, text="held-out text", rule="All concepts."
)


@pytest.mark.parametrize("context", [128, 5])
def test_every_row_says_what_the_dashboard_says(
    context: int, made: Dashboards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONTEXT", context)
    monkeypatch.setattr(module, "BATCH_ROWS", 10)  # three files
    chosen = [made.of(concept, names(), measure=False) for concept in range(C)]
    target = write_neuronpedia(tmp_path, made, chosen, ORIGIN)
    assert target == tmp_path / "a-student" / "1-cocomix-concepts"
    found = read(tmp_path, "a-student", "1-cocomix-concepts")
    assert found["Source"][0]["num_prompts"] == WINDOWS and found["Source"][0]["num_tokens_in_prompt"] == SEQ
    assert [int(row["index"]) for row in found["Neuron"]] == list(range(C))
    assert {int(row["index"]): row["description"] for row in found["Explanation"]} == {
        one: names().name(one) for one in range(C) if names().name(one)
    }
    windows = made.shards.windows(np.arange(WINDOWS), SEQ).tolist()
    texts, alone = [decode(ids) for ids in windows], [strengths_alone(made.student, ids) for ids in windows]
    for one, row in zip(chosen, found["Neuron"], strict=True):
        direct = direct_effect(made.student, one.concept)
        assert direct is not None
        assert row["pos_str"] == [effect.token for effect in one.promotes] and row["pos_values"][0] == direct.max()
        assert row["neg_str"] == [effect.token for effect in one.suppresses] and row["neg_values"][0] == direct.min()
        assert row["frac_nonzero"] == one.predicted.share
        assert row["freq_hist_data_bar_heights"] == one.predicted.histogram.counts
        assert row["freq_hist_data_bar_values"] == pytest.approx((EDGES[:-1] + EDGES[1:]) / 2)
        assert sum(row["logits_hist_data_bar_heights"]) == len(direct)
        middles = row["logits_hist_data_bar_values"]
        assert direct.min() <= middles[0] <= middles[-1] <= direct.max()
        assert row["topkCosSimIndices"] == [other.concept for other in one.similar]
        examples = [each for each in found["Activation"] if int(each["index"]) == one.concept]
        places, strengths = made.statistics.places_of(one.concept, 16)
        assert len(examples) == len(places)
        assert row["maxActApprox"] == max((each["maxValue"] for each in examples), default=0)
        for (window, position, _), strength, each in zip(places.tolist(), strengths.tolist(), examples, strict=True):
            assert len(each["tokens"]) == len(each["values"]) == min(context, SEQ)
            assert "".join(each["tokens"]) in texts[window]
            at = each["qualifyingTokenIndex"]
            expected = [there.get(one.concept, 0.0) for there in alone[window]][position - at :][:context]
            assert each["values"] == pytest.approx(expected, abs=2e-6)
            assert each["values"][at] == pytest.approx(strength, abs=2e-6)
            assert each["values"][each["maxValueTokenIndex"]] == each["maxValue"] == max(each["values"])
            assert each["minValue"] == min(each["values"]) and each["binMin"] == each["binContains"] == -1
            assert each["binMax"] == pytest.approx(float(strengths[0]))


def test_writing_again_writes_the_same(made: Dashboards, tmp_path: Path) -> None:
    chosen = [made.of(concept, names(), measure=False) for concept in (3, 5)]
    first, second = (write_neuronpedia(tmp_path / name, made, chosen, ORIGIN) for name in ("a", "b"))
    for path in first.rglob("*.*"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_a_mixer_without_a_direct_path_shows_what_was_measured(tmp_path: Path) -> None:
    model, shards = student("keys_values"), corpus(tmp_path / "s")
    made = Dashboards(statistics(model, shards), model, shards, decode)
    one = made.of(int(made.statistics.predicted.argmax()), names())
    write_neuronpedia(tmp_path, made, [one], ORIGIN)
    (row,) = read(tmp_path, "a-student", "1-cocomix-concepts")["Neuron"]
    assert one.measured is not None and row["pos_str"] == [effect.token for effect in one.measured.promotes] != []
    assert row["logits_hist_data_bar_heights"] == []


def test_ids_of_models() -> None:
    for words, expected in (("My run/é: A_b", "my-run-a_b"), ("[/b]", "b"), ("é", "cocomix"), ("x" * 200, "x" * 128)):
        assert model_id(words) == expected and re.fullmatch(r"[a-zA-Z0-9-_]{1,128}", expected)
