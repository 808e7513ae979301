"""Commands in this process, with output in any encoding; and the smallest settings of a whole run."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from cocomix.cli import main

MODEL = {"backbone": "gpt2", "width": 16, "layers": 2, "heads": 2}
TRAIN = {"batch_size": 4, "steps": 2, "learning_rate": 4e-3, "n_evals": 1, "precision": "fp32"}
SETTINGS = {
    "seq_len": 32,
    "corpus": {"source": "folder", "options": {"path": "my texts"}, "val_fraction": 0.2, "test_fraction": 0.2},
    "tokens": {"vocab_size": 300, "workers": 1},
    "teacher": {"model": MODEL, "train": TRAIN},
    "sae": {"layer": 0, "n_latents": 32, "k": 4, "aux_k": 8, "train": TRAIN | {"n_evals": 0}},
    "labels": {"exact": {"k": 2}},
    "students": {
        "ntp": {"objective": "ntp", "model": MODEL},
        "cocomix": {
            "objective": "cocomix",
            "model": MODEL,
            "labels": "exact",
            "concept": {"concept_layer": 1, "top_k": 4},
        },
    },
    "students_train": TRAIN,
    "evaluation": {"curve_windows": 4, "windows": 8, "sae_windows": 8},
}


class Shell:
    """Runs commands of `cocomix` in `home`, which gets `my texts` and `my settings.yaml`."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self._monkeypatch = home, monkeypatch
        (home / "my texts").mkdir()
        for number in range(20):
            (home / "my texts" / f"{number}.txt").write_text(f"The road number {number} is counted. " * 30)
        (home / "my settings.yaml").write_text(yaml.safe_dump(SETTINGS))
        monkeypatch.chdir(home)

    def run(self, words: Sequence[str], encoding: str = "utf-8") -> tuple[int, str, str]:
        """Exit code, output and error of one command."""
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        with self._monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["cocomix", *words])
            patched.setattr(sys, "stdout", streams[0])
            patched.setattr(sys, "stderr", streams[1])
            code = 0
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        for stream in streams:
            stream.flush()
        output, error = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
        return code, output, error
