"""Publishing: what is staged loads, the card says what the records say, and the hub's refusals are one sentence."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

from cocomix.hub import public, push_student
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import sha256

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny: Path) -> Run:
    folder = tiny / "runs" / "tiny"
    return Run(folder, load_config(folder / "config.yaml"))


class FakeHub:
    """Stands in for HfApi; keeps what it is asked."""

    asked: list[tuple[str, dict[str, Any]]] = []
    files: list[str] = []
    error: Exception | None = None
    public = False

    def create_repo(self, repo: str, **given: Any) -> str:
        if FakeHub.error is not None:
            raise FakeHub.error
        FakeHub.asked.append((repo, given))
        return f"https://hub/{repo}"

    def repo_info(self, repo: str) -> Any:
        return SimpleNamespace(private=not FakeHub.public)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        FakeHub.asked.append((repo_id, {}))
        FakeHub.files = sorted(path.name for path in Path(folder_path).iterdir())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    FakeHub.asked, FakeHub.files, FakeHub.error, FakeHub.public = [], [], None, False
    return FakeHub


def test_the_staged_folder_loads_and_its_card_says_what_the_records_say(run: Run, tmp_path: Path) -> None:
    where = push_student(run, "cocomix", 0, repo="me/it", licence="mit", only_stage=tmp_path / "out")
    folder = tmp_path / "out"
    assert where == str(folder) and not list(folder.glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a house").input_ids
    card = ModelCard.load(folder / "README.md")
    evaluated = json.loads((run.folder / "evaluation/cocomix/seed0/stage.json").read_text())["figures"]
    figures = {(one.dataset_split, one.metric_type): one.metric_value for one in card.data.eval_results or []}
    assert figures["val", "perplexity"] == evaluated["val"]["perplexity"]
    assert figures["test", "perplexity"] == evaluated["test"]["perplexity"]
    assert card.data.license == "mit" and card.data.library_name == "transformers"
    text = card.text
    record = json.loads((run.folder / "students/cocomix/seed0/stage.json").read_text())
    manifest = json.loads((run.folder / "corpus/text/corpus.json").read_text())
    for fact in (
        f"{model.num_parameters():,}",
        f"{record['figures']['tokens']:,}",
        sha256(run.folder / "students/cocomix/seed0/model/model.safetensors"),
        sha256(run.folder / "teacher/model/model.safetensors"),
        sha256(run.folder / "sae/model/sae.safetensors"),
        manifest["splits"]["test"]["sha256"],
        record["made"]["machine"]["torch"],
        "rule exact, sign helpful, 4 a position",
        "import cocomix.model",
        'from_pretrained("me/it")',
    ):
        assert fact in text, fact
    assert str(run.folder) not in text and str(Path.home()) not in text


def test_a_damaged_student_is_not_passed_on(run: Run, tmp_path: Path) -> None:
    model = next(one for one in run.students if one.student == "cocomix").folder / "model"
    for name in ("model.safetensors", "config.json"):
        kept = (model / name).read_bytes()
        try:
            (model / name).write_bytes(kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:])
            with pytest.raises(CocomixError, match=rf"{name} was altered"):
                push_student(run, "cocomix", 0, repo=None, only_stage=tmp_path / "staged")
        finally:
            (model / name).write_bytes(kept)
    assert not (tmp_path / "staged").exists()


def test_a_plain_students_card_needs_no_import_and_names_no_teacher(run: Run, tmp_path: Path) -> None:
    push_student(run, "ntp", 0, repo=None, only_stage=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "import cocomix" not in text and "teacher" not in text and "No licence was stated" in text
    with pytest.raises(CocomixError, match="not empty"):
        push_student(run, "ntp", 0, repo=None, only_stage=tmp_path / "out")


def test_an_upload_makes_the_repository_and_sends_the_folder(run: Run, hub: type[FakeHub]) -> None:
    assert push_student(run, "cocomix", 0, repo="me/it", private=True) == "https://hub/me/it"
    assert hub.asked == [("me/it", {"private": True, "exist_ok": True}), ("me/it", {})]
    assert hub.files == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_private_push_never_ends_in_a_public_repository(run: Run, hub: type[FakeHub]) -> None:
    hub.public = True
    with pytest.raises(CocomixError, match="exists and is public"):
        push_student(run, "cocomix", 0, repo="me/it", private=True)
    assert hub.files == []


def refusal(status: int) -> HfHubHTTPError:
    request = httpx.Request("POST", "https://hub/api?token=hf_secret", headers={"authorization": "Bearer hf_secret"})
    return HfHubHTTPError("hf_secret was refused", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LocalTokenNotFoundError("none"), "not logged in"),
        (refusal(401), "does not know your token"),
        (refusal(403), "does not let you write to me/it"),
        (refusal(500), "status 500"),
        (ConnectionError("no route"), "cannot be reached"),
        (httpx.ConnectError("no such name"), "cannot be reached"),
        (type("ConnectError", (Exception,), {"__module__": "httpx2"})("no such name"), "cannot be reached"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refusals_are_one_sentence_without_secrets(run: Run, hub: type[FakeHub], error: Exception, words: str) -> None:
    hub.error = error
    with pytest.raises(CocomixError, match=words) as found:
        push_student(run, "cocomix", 0, repo="me/it")
    assert "hf_secret" not in str(found.value) and "\n" not in str(found.value)


def test_an_error_of_our_own_is_not_called_the_networks(run: Run, hub: type[FakeHub]) -> None:
    hub.error = AttributeError("a bug")
    with pytest.raises(AttributeError):
        push_student(run, "cocomix", 0, repo="me/it")


@pytest.mark.parametrize(
    ("student", "seed", "repo", "words"),
    [("nobody", 0, "me/it", "no student 'nobody'"), ("ntp", 7, "me/it", "seed 7"), ("ntp", 0, "it", "USER/NAME")],
)
def test_bad_names_are_one_sentence(run: Run, student: str, seed: int, repo: str, words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        push_student(run, student, seed, repo=repo)


def test_paths_of_this_machine_stay_here() -> None:
    assert public("/home/me/secret/texts") == "texts" and public("~/x/y.jsonl") == "y.jsonl"
    assert public("openai-community/gpt2") == "openai-community/gpt2" and public(3) == 3
