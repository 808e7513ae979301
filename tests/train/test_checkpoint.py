"""Checkpoints: damage, foreign settings, failed saves, and other numbers of processes."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.train import checkpoint
from cocomix.train.checkpoint import load_checkpoint, save_checkpoint
from cocomix.train.trainer import Trainer
from cocomix.utils.errors import CocomixError, Interrupted
from cocomix.utils.files import write_sealed
from tests.helpers.distributed_programs import launch, program
from tests.helpers.small_training import CONFIG, objective, source, weights


def x(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(value)}


def test_a_damaged_checkpoint_falls_back_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, x(step), {"curve": [step]}, "key")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    found = x()
    assert load_checkpoint(tmp_path, "key", found) == (3, {"curve": [3]}) and found == x(3)
    (newest,) = (tmp_path / "step-00000003").glob("*.safetensors")
    damaged = bytearray(newest.read_bytes())
    damaged[-1] ^= 1
    newest.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"damaged .* missing or altered"):
        assert load_checkpoint(tmp_path, "key", found) == (2, {"curve": [2]})
    assert found == x(2)
    newest.unlink()
    with pytest.raises(CocomixError, match="other settings"):
        load_checkpoint(tmp_path, "other", x())
    assert load_checkpoint(tmp_path / "none", "key", x()) is None
    (tmp_path / "step-00000002" / "meta.json").write_text("[]")
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(tmp_path, "key", x()) is None


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return (tmp_path / "executed").touch, ()

    save_checkpoint(tmp_path, 1, x(1), {}, "key")
    folder = tmp_path / "step-00000001"
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(pickle.dumps(Planted()))
    (folder / ".metadata").write_bytes(pickle.dumps(Planted()))
    meta = json.loads((folder / "meta.json").read_text())
    meta["files"] = {file.name: checkpoint._entry(file)}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(tmp_path, "key", x()) is None
    assert not (tmp_path / "executed").exists()


def test_a_failed_save_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, x(1), {}, "key")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("save", "_publish"):
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, name, full)
            with pytest.raises(OSError, match="No space"):
                save_checkpoint(tmp_path, 2, x(2), {}, "key")
        assert load_checkpoint(tmp_path, "key", x()) == (1, {})
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def trained(home: Path, name: str, until: int, **settings: Any) -> dict[str, torch.Tensor] | None:
    """Train in `home/name` until step `until` and stop there with a checkpoint; the weights, if that is the end."""
    made = objective()

    class Stopping(Trainer):
        def _save(self) -> None:
            super()._save()
            if self.step >= until < self.total:
                raise Interrupted("enough")

    def forward(model: torch.nn.Module) -> dict[str, float]:
        with torch.no_grad():  # as an evaluation does, also just before a checkpoint
            return {"logits": float(model(input_ids=torch.arange(8)[None]).logits.sum())}

    every = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9, "n_evals": 12, **settings})
    try:
        Stopping(made, source(home / "s"), every, home / name, forward).run()
    except Interrupted:
        return None
    return weights(made)


STEP = "from tests.train.test_checkpoint import trained\nfound = trained(home, {name!r}, {until}, parallel={how!r})\n"
KEEP = "if is_main() and found is not None:\n    torch.save(found, home / '{name}.pt')\n"


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_four_processes_then_two_then_one(tmp_path: Path, how: str) -> None:
    whole = trained(tmp_path, "whole", 12)
    assert whole is not None
    for n, until in ((4, 5), (2, 10)):
        launch(n, program(tmp_path, STEP.format(name="cut", until=until, how=how)))
        meta = json.loads((tmp_path / f"cut/checkpoints/step-{until:08d}/meta.json").read_text())
        assert meta["processes"] == n and len(meta["files"]) == n
    found = trained(tmp_path, "cut", 12)
    assert found is not None
    for name, tensor in whole.items():
        assert (tensor - found[name]).abs().max() < 1e-4, name  # sums in another order, through Adam


def test_a_checkpoint_of_shards_resumes_as_copies_to_nearly_the_same(tmp_path: Path) -> None:
    whole = trained(tmp_path, "whole", 12)
    launch(2, program(tmp_path, STEP.format(name="mixed", until=5, how="fsdp")))
    last = STEP.format(name="mixed", until=12, how="ddp") + KEEP.format(name="mixed")
    launch(2, program(tmp_path, last))
    found = torch.load(tmp_path / "mixed.pt", weights_only=True)
    assert whole is not None
    for name, tensor in whole.items():
        assert (tensor - found[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_resume_to_the_same_bits(tmp_path: Path, how: str) -> None:
    body = STEP.format(name="whole", until=12, how=how) + KEEP.format(name="whole")
    launch(2, program(tmp_path, body))
    launch(2, program(tmp_path, STEP.format(name="cut", until=5, how=how)))
    launch(2, program(tmp_path, STEP.format(name="cut", until=12, how=how) + KEEP.format(name="cut")))
    whole, cut = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "cut"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name


def test_a_checkpoint_that_names_a_file_elsewhere_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for step in (1, 2):
        save_checkpoint(tmp_path, step, x(step), {}, "key")
    path = tmp_path / "step-00000002" / "meta.json"
    meta = json.loads(path.read_text())
    meta["files"]["../secret"] = checkpoint._entry(tmp_path / "secret")
    write_sealed(path, meta)
    with pytest.warns(UserWarning, match="outside its folder"):
        assert load_checkpoint(tmp_path, "key", x()) == (1, {})
