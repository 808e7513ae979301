"""Stage a student for the hub, and upload it."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cocomix.hub_card import model_card
from cocomix.hub_facts import lineage, measured, public
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_text

if TYPE_CHECKING:
    from cocomix.pipeline.run import Run

PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""What goes into the repository of a model's folder: weights, configuration, tokenizer; no code, no pickles."""


def push_student(
    run: "Run",
    name: str,
    seed: int,
    *,
    repo: str | None,
    private: bool = False,
    licence: str | None = None,
    only_stage: Path | None = None,
) -> str:
    """Upload a student with its model card; returns where it is.

    Args:
        repo: USER/NAME on the hub; made if it does not exist.
        only_stage: write what would be uploaded into this folder instead, which must be empty or new.

    Raises:
        CocomixError: no such trained student, or the hub refuses or cannot be reached.
    """
    student = next((one for one in run.students if one.student == name and one.seed == seed), None)
    if student is None:
        there = ", ".join(f"{one.student} seed {one.seed}" for one in run.students)
        raise CocomixError(f"this run has no student {name!r} of seed {seed}; it has {there}")
    if only_stage is not None:
        if only_stage.exists() and any(only_stage.iterdir()):
            raise CocomixError(f"{only_stage} is not empty; give a new folder")
        stage_folder(run, student, only_stage, repo or f"USER/{name}", licence)
        return str(only_stage)
    if repo is None or repo.count("/") != 1 or not all(repo.split("/")):
        raise CocomixError(f"{repo!r} is no repository; give --to USER/NAME")
    with tempfile.TemporaryDirectory(prefix="cocomix-") as folder:
        stage_folder(run, student, Path(folder), repo, licence)
        return _upload(Path(folder), repo, private)


def stage_folder(run: "Run", student: StudentStage, folder: Path, repo: str, licence: str | None) -> None:
    """Write model, tokenizer and README.md into `folder`."""
    sections = lineage(run, student)
    folder.mkdir(parents=True, exist_ok=True)
    model = student.folder / "model"
    for pattern in PATTERNS:
        for path in sorted(model.glob(pattern)):
            shutil.copy2(path, folder / path.name)
    from cocomix.model.configuration_cocomix import CoCoMixConfig

    own = f'"model_type": "{CoCoMixConfig.model_type}"' in (model / "config.json").read_text(encoding="utf-8")
    card = model_card(
        repo=repo,
        own_architecture=own,
        sections=sections,
        measured=measured(run, student),
        config=_settings(student),
        licence=licence,
    )
    write_text(folder / "README.md", card)


def _settings(student: StudentStage) -> str:
    record = student.record() or {}
    kept = {name: record["settings"][name] for name in ("student", "train", "seq_len")}
    return yaml.safe_dump(_public(kept), sort_keys=False)


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _public(one) for name, one in value.items()}
    return [_public(one) for one in value] if isinstance(value, list | tuple) else public(value)


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise CocomixError(f"{repo} exists and is public; make it private on the hub, or leave out --private")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model, tokenizer and card from cocomix")
    except LocalTokenNotFoundError as error:
        raise CocomixError("you are not logged in to the hub; run `hf auth login`") from error
    except HFValidationError as error:
        raise CocomixError(f"{repo!r} is no name for a repository; give --to USER/NAME") from error
    except HfHubHTTPError as error:
        raise CocomixError(_refusal(error, repo)) from error
    except CocomixError:
        raise
    except Exception as error:
        if not _of_the_network(error):
            raise
        raise CocomixError(
            f"the hub cannot be reached ({type(error).__name__}); check the network and HF_HUB_OFFLINE, and push again"
        ) from error
    return str(url)


NETWORK = ("httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3")
"""Packages whose errors are the network's; which of them the hub's client uses depends on its version."""


def _of_the_network(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in NETWORK


def _refusal(error: Any, repo: str) -> str:
    """One sentence for an HTTP error; the error's own text may quote the request and stays out."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not know your token; run `hf auth login`"
    if status == 403:
        return f"the hub does not let you write to {repo}; check its owner and your token's rights"
    return f"the hub refused the upload to {repo} (status {status}); try again later"
