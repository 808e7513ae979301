"""Damaged token shards are refused by file name; many do not hold many files open; order is reproducible."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GPT2Config

from cocomix.data import (
    Document,
    TokenShards,
    batch_order,
    load_tokenizer,
    tokenize_corpus,
    train_tokenizer,
    write_shards,
)
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_sealed

TEXTS = [
    "We the people of the United States, in order to form",
    "Äpfel, naïve — “quotes” 🎈",
    "a",
    "Fellow citizens " * 40,
]


def documents(n: int = 30, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 500, size=rng.integers(1, 40)) for _ in range(n)]


def test_damage_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_shards(folder, documents(), vocab_size=500, eos_id=0, shard_tokens=100)
    victim = folder / "shard-00002.bin"
    good = victim.read_bytes()
    for bad, words in ((good[:-1], "bytes instead of"), (bytes([good[0] ^ 1]) + good[1:], "was altered")):
        victim.write_bytes(bad)
        with pytest.raises(CocomixError, match=f"shard-00002.bin .*{words}"):
            TokenShards.open(folder)
    victim.unlink()
    with pytest.raises(CocomixError, match=r"shard-00002\.bin is missing"):
        TokenShards.open(folder)
    victim.write_bytes(good)
    TokenShards.open(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CocomixError, match=r"manifest .* is damaged"):
        TokenShards.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(CocomixError, match="no finished token shards"):
        TokenShards.open(folder)


def test_many_shards_do_not_hold_many_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand shards of a million tokens are ten gigatokens; a process may hold about a thousand files open."""
    monkeypatch.setattr("cocomix.data.shards.MOST_OPEN", 3)
    docs = documents()
    plain = np.array([int(token) for doc in docs for token in [*doc, 0]])
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir())) if handles.exists() else 0
    shards = write_shards(tmp_path / "s", docs, vocab_size=500, eos_id=0, shard_tokens=16)
    assert len(list((tmp_path / "s").glob("*.bin"))) > 30
    order = np.random.default_rng(1).permutation(shards.n_windows(8))
    assert np.array_equal(shards.windows(order, 8), plain[: shards.n_windows(8) * 8].reshape(-1, 8)[order])
    if handles.exists():
        assert len(list(handles.iterdir())) <= before + 4  # three shards and the document boundaries
    del shards
    if handles.exists():
        assert len(list(handles.iterdir())) <= before


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="token id 500 outside"):
        write_shards(tmp_path / "a", [[1, 500]], vocab_size=500, eos_id=0)
    with pytest.raises(CocomixError, match="no documents"):
        write_shards(tmp_path / "b", [], vocab_size=500, eos_id=0)
    write_shards(tmp_path / "c", [[1]], vocab_size=500, eos_id=0)
    with pytest.raises(CocomixError, match="already holds"):
        write_shards(tmp_path / "c", [[2]], vocab_size=500, eos_id=0)


def test_batch_order_is_a_pure_function_and_epochs_are_permutations() -> None:
    n, size = 10, 4
    stream = np.concatenate([batch_order(n, size, seed=3, step=step) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert not np.array_equal(stream[:n], stream[n : 2 * n])
    assert np.array_equal(batch_order(n, size, 3, 7), stream[28:32])
    assert not np.array_equal(batch_order(1000, 50, 3, 0), batch_order(1000, 50, 4, 0))


def test_tokenizer_round_trips_any_text(tmp_path: Path) -> None:
    trained = train_tokenizer(TEXTS, 300, tmp_path / "t")
    loaded = load_tokenizer(str(tmp_path / "t"))
    for text in TEXTS:
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert ids == trained(text, add_special_tokens=False)["input_ids"]
        assert loaded.decode(ids) == text
    assert loaded.eos_token_id == loaded.pad_token_id == loaded.bos_token_id == 0
    shards = tokenize_corpus(
        loaded, [Document(str(i), t) for i, t in enumerate(TEXTS)], tmp_path / "s", batch_documents=3
    )
    as_text = {"add_special_tokens": False, "split_special_tokens": True}
    whole = [i for text in TEXTS for i in [*loaded(text, **as_text)["input_ids"], 0]]
    assert shards.windows([0], len(whole)).tolist() == [whole]
    with pytest.raises(CocomixError, match="no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CocomixError, match="no tokenizer can be loaded"):
        load_tokenizer(str(tmp_path / "empty"))
    GPT2Config().save_pretrained(tmp_path / "weights")
    with pytest.raises(CocomixError, match="no entries but special tokens"):
        load_tokenizer(str(tmp_path / "weights"))


def resealed(folder: Path, **values: Any) -> None:
    """Change the manifest, and put the checksums in it right."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | values
    for entry in [*manifest["shards"], manifest["boundaries"]]:
        content = (folder / entry["file"]).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_sealed(path, manifest)


@pytest.mark.parametrize(
    "values",
    [
        *({"n_tokens": 10**6}, {"n_tokens": -1}, {"n_tokens": True}, {"n_tokens": 1.0}, {"vocab_size": 0}),
        *({"vocab_size": 1 << 40}, {"dtype": "<u4"}, {"dtype": "|O"}, {"dtype": 3}, {"vocab_size": "500"}),
    ],
)
def test_a_manifest_that_its_files_contradict_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    write_shards(tmp_path, documents(), vocab_size=500, eos_id=0, shard_tokens=100)
    resealed(tmp_path)
    TokenShards.open(tmp_path)
    resealed(tmp_path, **values)
    with pytest.raises(CocomixError, match=r"the manifest of .* is damaged"):
        TokenShards.open(tmp_path)


@pytest.mark.parametrize("extra", [b"x", b"xx", None])
def test_a_shard_of_another_length_is_refused_whatever_its_checksum_says(tmp_path: Path, extra: bytes | None) -> None:
    write_shards(tmp_path, documents(), vocab_size=500, eos_id=0, shard_tokens=100)
    path = tmp_path / "shard-00001.bin"
    path.write_bytes(path.read_bytes()[:-2] if extra is None else path.read_bytes() + extra)
    resealed(tmp_path)
    with pytest.raises(CocomixError, match=r"the manifest of .* is damaged .its files do not hold"):
        TokenShards.open(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        *(
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}",
        ),
        *("{'descr': '<i8', 'fortran_order': False, 'shape': (3, 3)}", "[" * 500, "__import__('os').abort()"),
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1 << 70,)}".replace("1 << 70", str(1 << 70)),
    ],
)
def test_boundaries_that_are_none_are_refused(tmp_path: Path, header: str) -> None:
    write_shards(tmp_path, documents(), vocab_size=500, eos_id=0, shard_tokens=100)
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(72)
    (tmp_path / "doc-boundaries.npy").write_bytes(content)
    resealed(tmp_path)
    with pytest.raises(CocomixError, match=r"the manifest of .* is damaged .doc-boundaries"):
        TokenShards.open(tmp_path)


@pytest.mark.parametrize("where", ["vocab", "added", "file", "gpt2"])
def test_a_token_numbered_beyond_all_others_is_refused(tmp_path: Path, where: str) -> None:
    """Tokenizers would make room for two thousand million tokens, or end the process."""
    train_tokenizer(TEXTS, 300, tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    if where == "added":
        content["added_tokens"].append(content["added_tokens"][0] | {"id": 1 << 31, "content": "<x>"})
    else:
        content["model"]["vocab"]["a"] = 1 << 31
    path.write_text(json.dumps(content))
    if where == "gpt2":
        (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        path.unlink()
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(CocomixError, match="tokens up to 2147483648"):
        load_tokenizer(str(path if where == "file" else tmp_path))


def test_a_panic_inside_tokenizers_is_a_refusal(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300, tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "a\nb"
    path.write_text(json.dumps(content))
    with pytest.raises(CocomixError, match="no tokenizer can be loaded"):
        load_tokenizer(str(path))
