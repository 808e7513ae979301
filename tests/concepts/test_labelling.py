"""Labelling a split: the same store from one process or two, from one go or after a stop; signs share a pass."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.concepts import LabelStore, TopKSAE, attribute_active, select_active
from cocomix.concepts.labelling import label_split
from cocomix.tokens import TokenShards, write_shards

SIGNS = ("helpful", "absolute")


def parts(folder: Path) -> tuple[GPT2LMHeadModel, TopKSAE, TokenShards]:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3)
    teacher = GPT2LMHeadModel(config).eval().requires_grad_(False)
    sae = TopKSAE(16, 30, 6).requires_grad_(False)
    if not folder.exists():
        rng = np.random.default_rng(0)
        write_shards(folder, [rng.integers(1, 40, 33) for _ in range(5)], vocab_size=40, eos_id=0)
    return teacher, sae, TokenShards.open(folder)


def label(home: Path, name: str, stop_after: int | None = None) -> dict:
    teacher, sae, shards = parts(home / "s")

    def progress(step: int, _total: int, _metrics: dict) -> None:
        if step == stop_after:
            raise KeyboardInterrupt

    return label_split(
        teacher,
        sae,
        shards,
        home / name,
        layer=1,
        rule="exact",
        signs=SIGNS,
        k=2,
        seq_len=8,
        batch_size=3,
        lineage={"tokens": shards.fingerprint},
        progress=progress,
    )


def contents(folder: Path) -> list[bytes]:
    return [(folder / sign / file).read_bytes() for sign in SIGNS for file in ("ids.bin", "scores.bin")]


def test_labels_equal_direct_attribution(tmp_path: Path) -> None:
    figures = label(tmp_path, "l")
    teacher, sae, shards = parts(tmp_path / "s")
    ids = torch.from_numpy(shards.windows(np.arange(shards.n_windows(8)), 8))
    for sign in SIGNS:
        chosen = select_active(attribute_active(teacher, sae, ids, layer=1, rule="exact", sign=sign), 2)
        store = LabelStore.open(tmp_path / "l" / sign, expect={"tokens": shards.fingerprint, "sign": sign})
        assert np.array_equal(store.read(np.arange(len(ids)), 8)[0], chosen.targets().numpy())
        assert figures["valid_share"][sign] == pytest.approx(chosen.valid.double().mean().item())


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    label(tmp_path, "whole")
    with pytest.raises(KeyboardInterrupt):
        label(tmp_path, "stopped", stop_after=3)
    for _ in range(2):  # the second time everything is there already
        label(tmp_path, "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_kill_while_a_store_is_being_created_costs_nothing(tmp_path: Path) -> None:
    label(tmp_path, "whole")
    begun = tmp_path / "killed" / SIGNS[0]
    begun.mkdir(parents=True)
    (begun / "ids.bin").write_bytes(b"half")
    label(tmp_path, "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    label(tmp_path, "one")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_labelling import label\n"
        "from cocomix.train.distributed import distributed_session\n"
        "with distributed_session():\n"
        "    label(Path(sys.argv[1]), 'two')\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(program), str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for sign in SIGNS:
        one, two = (LabelStore.open(tmp_path / name / sign).read(np.arange(20), 8) for name in ("one", "two"))
        assert np.array_equal(one[0], two[0])
        assert np.allclose(one[1], two[1], rtol=1e-4, atol=1e-6)
