"""Where a student's training begins: at the state of a shorter finished training, at other weights, or anew.

An extended training must be the one that a longer run from the start would have been, bit for bit. So it goes on only
from a state whose learning rates, data and settings are the same up to there.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from cocomix.pipeline.attempts import read_record
from cocomix.train.config import LENGTH_SETTINGS, TrainConfig
from cocomix.train.trainer import STATE
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import check_weights, sha256


class Extension(NamedTuple):
    """What is known about extending a finished training.

    Attributes:
        state: folder of the state to go on from; None: there is none that fits.
        steps: length of the finished training.
        reason: where it goes on, or why it cannot, for the user; empty if there is no finished training to extend.
    """

    state: Path | None = None
    steps: int = 0
    reason: str = ""


def find_extension(
    folders: Sequence[Path], settings: dict[str, Any], inputs_outcome: list[str], train: TrainConfig, total: int
) -> Extension:
    """The longest finished training that one with `settings` and `total` steps extends.

    Args:
        folders: finished attempts at the stage.
        inputs_outcome: of the stage's inputs, which must be those the finished training had.
    """
    found = [_extension(folder, settings, inputs_outcome, train, total) for folder in folders]
    return max(found, key=lambda one: (one.state is not None, one.steps), default=Extension())


def _extension(
    folder: Path, settings: dict[str, Any], inputs_outcome: list[str], train: TrainConfig, total: int
) -> Extension:
    try:
        record = read_record(folder)
        theirs = record["settings"]
        if record["inputs_outcome"] != inputs_outcome or _apart_from_length(theirs) != _apart_from_length(settings):
            return Extension()
        before = TrainConfig(**theirs["train"])
        steps = record["figures"]["tokens"] // (before.batch_size * settings["seq_len"])
    except (OSError, ValueError, KeyError, TypeError):
        return Extension()
    if steps >= total:
        return Extension()
    schedule = before.schedule_over(steps)
    kept = sorted((folder / STATE).glob("step-*"))
    if schedule.extends_from is None:
        why = f"its schedule, {before.schedule}, depends on the length from the first step on; use constant or wsd"
    elif not kept:
        why = "its training state was not kept (keep_state)"
    else:
        done = int(kept[-1].name.removeprefix("step-"))
        if all(before.learning_rate_at(step, steps) == train.learning_rate_at(step, total) for step in range(done)):
            return Extension(folder / STATE, steps, f"goes on from step {done} of the finished {steps} steps")
        why = f"its learning rates were others; its warm-up had {schedule.warmup} steps, so set"
        why += f" students_train.warmup_steps={schedule.warmup}"
    return Extension(None, steps, f"the finished {steps} steps cannot be extended: {why}")


def _apart_from_length(settings: dict[str, Any]) -> dict[str, Any]:
    train = {name: value for name, value in settings["train"].items() if name not in LENGTH_SETTINGS}
    return settings | {"train": train}


def weights_folder(source: str, run_dir: Path) -> Path:
    """The model folder that `init_from` means: a path, or a stage of the run."""
    stage = run_dir / source / "model"
    folder = stage if stage.is_dir() else Path(source)
    if not folder.is_dir():
        raise CocomixError(
            f"init_from {source!r} is neither a finished stage of {run_dir} nor a folder; give one such as teacher or"
            " path/to/model"
        )
    return folder


def weights_checksum(folder: Path) -> str:
    """sha256 over the weight files of a model folder.

    Raises:
        CocomixError: there are none, or they are damaged.
    """
    check_weights(folder, "give another init_from")
    files = sorted(folder.glob("*.safetensors"))
    return _checksum(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@lru_cache
def _checksum(files: tuple[tuple[Path, int, int], ...]) -> str:
    return sha256(*(path for path, _, _ in files))


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Copy the weights in `folder` into `model`, which must have the same tensors.

    Raises:
        CocomixError: a tensor is missing, unknown, or of another shape; the sentence names the first.
    """
    tensors: dict[str, Any] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(path)
    except (OSError, SafetensorError) as error:
        raise CocomixError(f"the weights in {folder} cannot be read ({error}); give another init_from") from error
    own = model.state_dict()
    there = {own[name].data_ptr() for name in own.keys() & tensors.keys()}
    missing = sorted(name for name in own.keys() - tensors.keys() if own[name].data_ptr() not in there)
    unknown = sorted(tensors.keys() - own.keys())
    differing = sorted(name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape)
    if differing:
        name = differing[0]
        what = f"{name} has shape {list(tensors[name].shape)} there and {list(own[name].shape)} in the student"
    elif missing or unknown:
        what = f"{missing[0]} is missing there" if missing else f"{unknown[0]} is not in the student"
    else:
        model.load_state_dict(tensors, strict=False)
        return
    raise CocomixError(
        f"the student cannot start from the weights in {folder}: {what}; give weights of a model of the same kind and"
        " shape"
    )
