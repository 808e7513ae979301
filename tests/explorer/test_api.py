"""Every route's answer against direct calls, and one sentence for every request that cannot be answered."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from cocomix import __version__
from cocomix.analysis import read_channel
from cocomix.analysis.naming import EDITED
from cocomix.explorer.app import PAGE
from cocomix.explorer.catalog import ModelCatalog
from cocomix.pipeline.trained import inspect_text
from cocomix.steering import from_items, parse_steering, to_items
from tests.helpers.explored_run import COCOMIX, NTP, STEERING, TEXT, client_of, hooked

pytestmark = pytest.mark.slow
SNAPSHOT = f"{COCOMIX}/step-00000030"


def test_the_page_and_its_files(client: TestClient) -> None:
    page, script = client.get("/"), client.get("/page/main.js")
    assert page.headers["content-type"].startswith("text/html") and 'src="page/main.js"' in page.text
    assert "javascript" in script.headers["content-type"] and script.text == (PAGE / "main.js").read_text()
    for answer in (page, script):
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert client.get("/page/main.js", headers={"If-None-Match": script.headers["ETag"]}).status_code == 304


def test_models(client: TestClient, catalog: ModelCatalog, folder: Path) -> None:
    result = client.get("/api/models").json()
    models = {model["key"]: model for model in result["models"]}
    assert set(models) == {COCOMIX, SNAPSHOT, NTP, "0/ntp_wide/0"} and result["version"] == __version__
    assert len(result["examples"]) == 3 and all(result["examples"])
    run = catalog.runs[0].run
    for stage in run.students:
        model = models[f"0/{stage.student}/0"]
        predicts = stage.student == "cocomix"
        assert model["parameters"] == stage.model().num_parameters() and model["positions"] == run.config.seq_len
        assert model["predicts_concepts"] == model["steerable"] == model["has_labels"] == predicts
        assert (model["n_concepts"], model["top_k"]) == (
            (run.config.sae.n_latents, run.config.sae.k) if predicts else (0, 0)
        )
    assert models[SNAPSHOT]["label"] == "cocomix, seed 0, step 30" and models[COCOMIX]["label"] == "cocomix, seed 0"
    assert not ModelCatalog([folder])._sessions, "weights were loaded"


@pytest.mark.parametrize("concept", [None, 3])
def test_read(client: TestClient, folder: Path, concept: int | None) -> None:
    result = client.post("/api/read", json={"model": COCOMIX, "text": TEXT, "concept": concept, "top": 3}).json()
    expected = inspect_text(folder, TEXT, student="cocomix", seed=0, top=3, concept=concept)
    assert result.pop("model") == COCOMIX and result.pop("milliseconds") > 0
    assert result == json.loads(expected.model_dump_json())
    assert any(predicted["agreed"] for token in result["tokens"] for predicted in token["concepts"])
    assert (result["tokens"][2]["chosen"] is None) == (concept is None)


def test_what_came_through_the_channel(client: TestClient, catalog: ModelCatalog) -> None:
    session = catalog.open(COCOMIX)
    result = client.post("/api/channel", json={"model": COCOMIX, "text": TEXT, "at": 4, "top": 3}).json()
    expected = read_channel(session.model, session.encode(TEXT), 4, top=3, name=session.name_store.names().name)
    assert result.pop("model") == COCOMIX and result.pop("milliseconds") > 0
    assert result == json.loads(expected.model_dump_json()) and len(result["concepts"]) == 3
    reading = client.post("/api/read", json={"model": COCOMIX, "text": TEXT}).json()["tokens"]
    assert result["nats"] == pytest.approx(reading[4]["channel"], abs=1e-5) and reading[0]["channel"] is None
    assert client.post("/api/read", json={"model": NTP, "text": TEXT}).json()["tokens"][4]["channel"] is None
    for model, at, words in ((COCOMIX, 0, "nothing before the token 0"), (NTP, 4, "mixes no predicted vector in")):
        answer = client.post("/api/channel", json={"model": model, "text": TEXT, "at": at})
        assert answer.status_code == 400 and words in answer.json()["error"]
    assert not hooked(catalog, COCOMIX)


def test_a_snapshot_is_read_and_listed_like_its_student(client: TestClient, folder: Path) -> None:
    readings = [client.post("/api/read", json={"model": key, "text": TEXT}).json() for key in (COCOMIX, SNAPSHOT)]
    assert readings[0]["tokens"] == readings[1]["tokens"] and readings[1]["model"] == SNAPSHOT
    lists = [client.get("/api/concepts", params={"model": key}).json() for key in (COCOMIX, SNAPSHOT)]
    assert lists[0] == lists[1]
    assert {"cocomix-seed0.safetensors", "cocomix-seed0-step-00000030.safetensors"} == {
        path.name for path in (folder / "atlas").iterdir()
    }


def test_concepts_are_listed_sorted_and_searched(client: TestClient, catalog: ModelCatalog) -> None:
    def listed(**options: Any) -> dict[str, Any]:
        return client.get("/api/concepts", params={"model": COCOMIX, "limit": 500, **options}).json()

    n_concepts = catalog.open(COCOMIX).n_concepts
    result = listed()
    assert result["total"] == n_concepts == len(result["concepts"])
    shares = [row["predicted"] for row in result["concepts"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(catalog.entry(COCOMIX).info.top_k)
    assert [row["concept"] for row in listed(sort="number", offset=4, limit=3)["concepts"]] == [4, 5, 6]
    assert [row["concept"] for row in listed(q="c12")["concepts"]] == [12]
    named = next(row for row in result["concepts"] if row["name"])
    assert named["concept"] in {row["concept"] for row in listed(q=named["name"].upper())["concepts"]}
    assert listed(q="no concept is called this")["total"] == 0


def test_a_concept_has_a_dashboard(client: TestClient, catalog: ModelCatalog) -> None:
    top = client.get("/api/concepts", params={"model": COCOMIX}).json()["concepts"][0]
    result = client.get("/api/concept", params={"model": COCOMIX, "id": top["concept"]}).json()
    assert result["about"] == json.loads(catalog.open(COCOMIX).name_store.names().of(top["concept"]).model_dump_json())
    assert result["split"] == "validation" and result["predicted"]["share"] == pytest.approx(top["predicted"])
    assert (
        result["agreement"]["recall"] == pytest.approx(top["recall"])
        and result["promotes"]
        and result["measured"]["places"]
    )
    assert not hooked(catalog, COCOMIX)


def test_names_are_edited_and_stay(client: TestClient, folder: Path) -> None:
    def name_of_c5(client: TestClient) -> Any:
        row = client.get("/api/concepts", params={"model": SNAPSHOT, "q": "c5"}).json()["concepts"][0]
        return row["name"], row["edited"]

    before = name_of_c5(client)
    edit = {"model": COCOMIX, "concept": 5}
    result = client.post("/api/name", json={**edit, "name": " <b>mine</b> "}).json()
    assert (result["name"], result["edited"], result["source"]) == ("<b>mine</b>", True, "edited")
    assert name_of_c5(client) == ("<b>mine</b>", True) and name_of_c5(client_of(ModelCatalog([folder]))) == (
        "<b>mine</b>",
        True,
    )
    reading = client.post("/api/read", json={"model": COCOMIX, "text": TEXT, "concept": 5}).json()
    assert reading["name"] == "<b>mine</b>" and "mine" in (folder / EDITED).read_text()
    assert not client.post("/api/name", json={**edit, "name": ""}).json()["edited"] and name_of_c5(client) == before


def test_steering_streams_both_texts(client: TestClient, catalog: ModelCatalog) -> None:
    request = {"model": COCOMIX, "prompt": TEXT, "steering": STEERING, "tokens": 6, "seed": 3}
    answer = client.post("/api/steer", json=request)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    start, *steps, end = [json.loads(line) for line in answer.text.splitlines()]
    assert [event["event"] for event in (start, *steps, end)] == ["start", *["token"] * 6, "end"]
    assert "".join(token["token"] for token in start["prompt"]) == TEXT
    assert start["judge"] == "teacher" and start["concepts"] == [3, 7]
    assert set(steps[0]["steered"]["concepts"]) == {"3", "7"} == set(end["base"]["presence"])
    assert end["tokens"] == 6 and not hooked(catalog, COCOMIX)
    plain = client.post("/api/steer", json={**request, "steering": []}).text.splitlines()[1:-1]
    assert [json.loads(line)["base"] for line in plain] == [{**step["base"], "concepts": {}} for step in steps]
    assert all(json.loads(line)["same"] for line in plain)
    long = client.post("/api/steer", json={**request, "tokens": 4000}).text.splitlines()
    room = catalog.entry(COCOMIX).info.positions - len(start["prompt"])
    assert json.loads(long[-1])["tokens"] == room == len(long) - 2


def test_a_setting_is_copied_in_forms_that_say_the_same(client: TestClient, folder: Path) -> None:
    prompt = 'it\'s -- "quoted"\n$HOME'
    request = {"model": COCOMIX, "prompt": prompt, "steering": STEERING, "tokens": 4, "temperature": 0}
    result = client.post("/api/steering", json=request).json()
    assert result["cli"].startswith("cocomix generate ") and f"--run {folder}" in result["cli"]
    setting = parse_steering(result["cli"].split("--steer ")[1].strip("'"))
    names: dict[str, Any] = {}
    exec(result["python"], names)
    decoded = names["tokenizer"].decode(names["text"][0])
    written = client.post("/api/steer", json=request).text.splitlines()[1:-1]
    assert decoded == prompt + names["tokenizer"].decode([json.loads(line)["steered"]["id"] for line in written])
    for text in (result["json"], result["cli"].split("--steer ")[1].strip("'")):
        back = client.post("/api/steering/read", json={"text": text}).json()["steering"]
        assert back == json.loads(result["json"])["steering"]
        assert [item.model_dump() for item in to_items(setting)] == back
    assert "amount" not in back[1]
    of_a_snapshot = client.post("/api/steering", json={**request, "model": SNAPSHOT, "prompt": "--help"}).json()
    assert "--model" in of_a_snapshot["cli"] and of_a_snapshot["cli"].endswith("-- --help")


def test_models_are_compared_with_and_without_concepts(client: TestClient, catalog: ModelCatalog) -> None:
    result = client.post("/api/compare", json={"left": COCOMIX, "right": NTP, "text": TEXT, "top": 2}).json()
    assert result["same_tokens"] and (result["left"]["model"], result["right"]["model"]) == (COCOMIX, NTP)
    assert result["right"]["n_concepts"] == 0 and all(not token["concepts"] for token in result["right"]["tokens"])
    ids = torch.tensor([[token["id"] for token in result["right"]["tokens"]]])
    loss = catalog.open(NTP).model(ids, labels=ids).loss.item()
    losses = [token["loss"] for token in result["right"]["tokens"][1:]]
    assert sum(losses) / len(losses) == pytest.approx(loss, rel=1e-4)
    for side in ("left", "right"):
        tokens = result[side]["tokens"]
        size = len(TEXT.encode()) - len(tokens[0]["token"].encode())
        bits = sum(token["loss"] for token in tokens[1:]) / math.log(2) / size
        assert result[f"{side}_bits_per_byte"] == pytest.approx(bits)


READ, STEER = {"model": COCOMIX, "text": TEXT}, {"model": COCOMIX, "prompt": TEXT, "steering": STEERING}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("read", READ | {"model": "9/x/0"}, 404, "there is no model '9/x/0'; choose one"),
        ("read", READ | {"text": " \n"}, 400, "the text is empty; give some words"),
        ("read", READ | {"text": "word " * 300}, 400, "64 positions; shorten it by"),
        ("read", READ | {"text": "\ud800"}, 400, "text: it holds half a character"),
        ("read", READ | {"text": 3}, 400, "text: Input should be a valid string"),
        ("read", READ | {"concept": 128}, 400, "no concept 128; the student's are 0 to 127"),
        ("read", READ | {"concept": -1}, 400, "no concept -1"),
        ("read", READ | {"concept": "3"}, 400, "concept: Input should be a valid integer"),
        ("read", READ | {"model": NTP, "concept": 3}, 400, "predicts no concepts"),
        ("read", READ | {"top": 1000}, 400, "less than or equal to 50"),
        ("read", READ | {"txet": "x"}, 400, "the key 'txet' does not exist; did you mean 'text'?"),
        ("read", {"model": COCOMIX}, 400, "the key 'text' is missing"),
        ("compare", {"left": COCOMIX, "right": "x", "text": "x"}, 404, "there is no model 'x'"),
        ("compare", {"left": COCOMIX, "right": NTP, "text": ""}, 400, "the text is empty"),
        ("name", {"model": COCOMIX, "concept": 500, "name": "x"}, 404, "there is no concept 500"),
        ("name", {"model": NTP, "concept": 5, "name": "x"}, 400, "predicts no concepts"),
        ("name", {"model": COCOMIX, "concept": 5, "name": "x" * 999}, 400, "name: String should have at most 120"),
        ("steer", STEER | {"model": NTP}, 400, "predicts no concepts"),
        ("steer", STEER | {"prompt": ""}, 400, "the text is empty"),
        ("steer", STEER | {"prompt": "word " * 300}, 400, "64 positions; shorten it by"),
        ("steer", STEER | {"steering": [{"concept": 128, "do": "ablate"}]}, 400, "128 is outside"),
        ("steer", STEER | {"steering": [{"concept": 1, "do": "dance"}]}, 400, "no intervention 'dance'"),
        ("steer", STEER | {"steering": [{"concept": 1, "do": "amplify"}]}, 400, "amplify needs a number"),
        ("steer", STEER | {"steering": STEERING + STEERING[:1]}, 400, "concept 3 is steered twice"),
        ("steer", STEER | {"temperature": -1}, 400, "temperature"),
        ("steer", STEER | {"tokens": 0}, 400, "tokens"),
        ("steering", STEER | {"model": "x"}, 404, "there is no model 'x'"),
        ("steering/read", {"text": "nonsense"}, 400, "the steering item 'nonsense' cannot be read"),
        ("steering/read", {"text": "{"}, 400, "the steering setting is not JSON"),
    ],
)
def test_bad_bodies_are_one_sentence(
    client: TestClient, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    sent = json.dumps(body)
    answer = client.post(f"/api/{path}", content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"] and list(answer.json()) == ["error"]


@pytest.mark.parametrize("sent", ["{", "[1]", "", "\xff", "[" * 100_000, '{"text": NaN'])
def test_a_body_that_is_no_json_object(client: TestClient, sent: str) -> None:
    answer = client.post("/api/read", content=sent.encode("latin-1"), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "the request is" in answer.json()["error"]


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/api/concepts", 400, "the key 'model' is missing"),
        ("/api/concepts?model=x", 404, "there is no model 'x'"),
        (f"/api/concepts?model={NTP}", 400, "predicts no concepts"),
        (f"/api/concepts?model={COCOMIX}&sort=beauty", 400, "beauty"),
        (f"/api/concepts?model={COCOMIX}&offset=-1", 400, "offset"),
        (f"/api/concepts?model={COCOMIX}&limit=x", 400, "limit"),
        (f"/api/concept?model={COCOMIX}&id=128", 404, "there is no concept 128; the student's are 0 to 127"),
        (f"/api/concept?model={COCOMIX}&id=twelve", 400, "id"),
        ("/api/read", 405, "GET /api/read is not served here"),
        ("/api/nothing", 404, "/api/nothing is not served here"),
        ("/page/../app.py", 404, "not served here"),
        ("/page/%2e%2e/app.py", 404, "not served here"),
    ],
)
def test_bad_addresses_are_one_sentence(client: TestClient, address: str, status: int, words: str) -> None:
    answer = client.get(address)
    assert answer.status_code == status and words in answer.json()["error"], answer.text


def test_what_breaks_says_where_to_look(
    client: TestClient, catalog: ModelCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(catalog.open(COCOMIX), "read", broken)
    answer = client.post("/api/read", json=READ)
    assert (
        answer.status_code == 500 and "look at the terminal" in answer.json()["error"] and "secret" not in answer.text
    )
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    monkeypatch.setattr("cocomix.explorer.paired_generation.CachedModel._forward", broken)
    lines = client.post("/api/steer", json=STEER).text.splitlines()
    assert json.loads(lines[0])["event"] == "start"
    assert json.loads(lines[-1])["event"] == "error" and "look at the terminal" in json.loads(lines[-1])["error"]
    assert not hooked(catalog, COCOMIX)


def test_without_its_teacher_a_run_is_still_read_and_steered(folder: Path, client: TestClient) -> None:
    (folder / "teacher" / "model").rename(folder / "away")
    try:
        bare = client_of(ModelCatalog([folder]))
        assert not any(model["has_labels"] for model in bare.get("/api/models").json()["models"])
        reading = bare.post("/api/read", json=READ).json()
        assert all(token["labels"] is None for token in reading["tokens"])
        start, *steps, end = map(json.loads, bare.post("/api/steer", json=STEER | {"tokens": 3}).text.splitlines())
        assert start["judge"] == "the unsteered student" and end["base"]["presence"] == {} and len(steps) == 3
    finally:
        (folder / "away").rename(folder / "teacher" / "model")
    both = client_of(ModelCatalog([folder, folder]))
    assert {model["label"] for model in both.get("/api/models").json()["models"]} >= {"tiny: cocomix, seed 0"}
    result = both.post("/api/compare", json={"left": COCOMIX, "right": "1/cocomix/0", "text": TEXT}).json()
    assert result["left"]["tokens"] == result["right"]["tokens"]
    assert from_items([]) == {}
