"""Tokens made in parts, by any number of processes, are those of the slow twin: one tokenizer call a document."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cocomix.data import (
    Corpus,
    CorpusWriter,
    Document,
    load_tokenizer,
    tokenize_corpus,
    train_tokenizer,
)
from cocomix.data import tokenize as encode
from cocomix.data import (
    tokenize as workers,
)
from cocomix.data.tokenize import (
    Job,
    RustEncoder,
    TokenizerSpec,
    encode_documents,
    encode_part,
    encode_parts,
    join_parts,
    load_encoder,
    may_cut,
    pieces,
)
from cocomix.utils.errors import CocomixError
from tests.helpers.made_corpora import content
from tests.helpers.texts import TEXTS, gpt2_files

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 500, folder)
    return folder


@pytest.mark.parametrize("at_least", [1, 2, 5, 40, 10_000])
def test_pieces_have_the_tokens_of_the_whole(tokenizer_folder: Path, at_least: int) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert may_cut(tokenizer)
    cuts = 0
    for text in TEXTS:
        parts = list(pieces(text, at_least))
        cuts += len(parts) - 1
        assert "".join(parts) == text and all(len(part) >= at_least for part in parts[:-1])
        joined = [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False).ids]
        assert joined == tokenizer.encode(text, add_special_tokens=False).ids
    assert cuts > 500 or at_least > 5


def test_only_where_it_is_safe_a_document_is_cut(tokenizer_folder: Path) -> None:
    def changed(change: object) -> bool:
        tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
        change(tokenizer)  # type: ignore
        return may_cut(tokenizer)

    assert changed(lambda t: None)
    assert not changed(lambda t: setattr(t, "normalizer", normalizers.NFC()))
    assert not changed(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert not changed(
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    )
    assert not changed(lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Metaspace()))
    assert not changed(lambda t: t.add_tokens(["two words"]))


AS_TEXT = {"add_special_tokens": False, "split_special_tokens": True}


def slow(folder: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = load_tokenizer(str(folder))
    return [[*tokenizer(text, **AS_TEXT)["input_ids"], tokenizer.eos_token_id] for text in texts]


@pytest.mark.parametrize(("chars", "documents"), [(1 << 18, 256), (50, 3), (1, 1), (400, 256)])
def test_batches_and_pieces_change_nothing(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, chars: int, documents: int
) -> None:
    monkeypatch.setattr(encode, "BATCH_CHARS", chars)
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", documents)
    fast = load_encoder(tokenizer_folder, 500, 0)
    assert isinstance(fast, RustEncoder)
    found = [ids.tolist() for ids in encode_documents(fast, [Document("", text) for text in TEXTS])]
    assert found == slow(tokenizer_folder, TEXTS)


def test_settings_of_a_tokenizer_file_cut_and_pad_nothing(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    fast = load_encoder(tmp_path, 500, 0)
    assert [i.tolist() for i in encode_documents(fast, [Document("", TEXTS[5])])] == slow(tokenizer_folder, [TEXTS[5]])


def test_a_tokenizer_without_a_tokenizers_file_gets_its_texts_whole(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "BATCH_CHARS", 10)
    from cocomix.data import tokenizer as module

    monkeypatch.setattr(module, "load_tokenizer", lambda _: load_tokenizer(str(tokenizer_folder)))
    plain = load_encoder(tmp_path, 0, 0)
    assert not isinstance(plain, RustEncoder) and plain.uncut()
    found = [ids.tolist() for ids in encode_documents(plain, [Document("", text) for text in TEXTS[:20]])]
    assert found == slow(tokenizer_folder, TEXTS[:20])


def test_an_id_outside_the_vocabulary_is_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(CocomixError, match="outside the vocabulary of 100"):
        list(encode_documents(load_encoder(tokenizer_folder, 100, 0), [Document("", TEXTS[5])]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    texts = folder / "texts"
    texts.mkdir()
    for number, text in enumerate(TEXTS):
        (texts / f"{number:03d}.txt").write_text(text, newline="")
    from cocomix.data import SOURCES

    CorpusWriter(folder, val_fraction=0.1, test_fraction=0.1, file_bytes=6000).write(
        SOURCES["folder"](path=texts), lambda *_: None
    )
    return Corpus(folder / "text")


def jobs_of(corpus: Corpus, folder: Path) -> list[Job]:
    (folder / "parts").mkdir(parents=True)
    return [
        Job(corpus.folder / entry["file"], entry["sha256"], folder / "parts" / f"train-{number:05d}.json", "<u2")
        for number, entry in enumerate(corpus.files("train"))
    ]


OPTIONS = {"vocab_size": 500, "eos_id": 0, "shard_tokens": 1000, "dtype": "<u2"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_joined_are_the_shards_of_one_writer(
    corpus: Corpus, tokenizer_folder: Path, tmp_path: Path, count: int
) -> None:
    loaded = load_tokenizer(str(tokenizer_folder))
    twin = tokenize_corpus(loaded, corpus.documents("train"), tmp_path / "twin", shard_tokens=1000)
    jobs = jobs_of(corpus, tmp_path)
    assert len(jobs) > 5
    tokens: list[int] = []
    encode_parts(jobs, TokenizerSpec(tokenizer_folder, 500, 0), count, lambda record: tokens.append(record["tokens"]))
    shards = join_parts([job.part for job in jobs], tmp_path / "train", special=twin.special, **OPTIONS)  # type: ignore
    assert shards.fingerprint == twin.fingerprint and shards.n_tokens == twin.n_tokens == sum(tokens)
    assert content(tmp_path / "train") == content(tmp_path / "twin")
    assert np.load(tmp_path / "train" / "doc-boundaries.npy").tolist() == twin.documents.tolist()


def test_a_join_stopped_anywhere_goes_on(
    corpus: Corpus, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocomix.data import tokenize as join

    encoder = load_encoder(tokenizer_folder, 500, 0)

    def joined(folder: Path) -> dict[str, bytes]:
        join_parts([job.part for job in jobs], folder / "train", **OPTIONS)  # type: ignore
        return content(folder / "train")

    jobs = jobs_of(corpus, tmp_path / "whole")
    for job in jobs:
        encode_part(encoder, job)
    whole = joined(tmp_path / "whole")
    keep = join.write_sealed
    for stop in range(len(jobs)):
        jobs = jobs_of(corpus, tmp_path / str(stop))
        for job in jobs:
            encode_part(encoder, job)
        left = stop

        def failing(path: Path, state: dict[str, object], *, durable: bool) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise RuntimeError("killed")
            keep(path, state, durable=durable)

        monkeypatch.setattr(join, "write_sealed", failing)
        with pytest.raises(RuntimeError):
            joined(tmp_path / str(stop))
        monkeypatch.setattr(join, "write_sealed", keep)
        assert joined(tmp_path / str(stop)) == whole
        assert joined(tmp_path / str(stop)) == whole  # a finished one is left alone


def test_a_process_that_dies_is_one_sentence(corpus: Corpus, tokenizer_folder: Path, tmp_path: Path) -> None:
    import multiprocessing

    jobs = jobs_of(corpus, tmp_path)
    os.mkfifo(tmp_path / "never")  # a process that reads it waits, so that there is one to kill
    jobs += [Job(tmp_path / "never", "", tmp_path / "parts" / f"stuck-{number}.json", "<u2") for number in range(2)]

    def kill() -> None:
        while not (victims := multiprocessing.active_children()) or not jobs[0].part.exists():
            time.sleep(0.01)
        os.kill(victims[0].pid or 0, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(CocomixError, match=r"a tokenizing process died, .* lower tokens\.workers"):
        encode_parts(jobs, TokenizerSpec(tokenizer_folder, 500, 0), 2, lambda _: None)
    thread.join()
    assert not multiprocessing.active_children()


def test_an_error_of_a_process_is_the_same_error_here(corpus: Corpus, tokenizer_folder: Path, tmp_path: Path) -> None:
    jobs = [job._replace(checksum="0" * 64) for job in jobs_of(corpus, tmp_path)]
    with pytest.raises(CocomixError, match=r"was altered; delete"):
        encode_parts(jobs, TokenizerSpec(tokenizer_folder, 500, 0), 2, lambda _: None)


def test_one_process_a_core_and_no_more_than_there_is_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda count, *_, **__: asked.append(count) or 1 / 0)
    monkeypatch.setattr(workers, "cores", lambda: 200)
    monkeypatch.setattr(workers, "WORTH", 1)
    for given in (None, 3, 7, 100):
        with pytest.raises(ZeroDivisionError):
            encode_parts([Job(Path(), "", Path(), "")] * 50, TokenizerSpec(Path(), 1, 0), given, lambda _: None)
    assert asked == [workers.MOST, 3, 7, 50]


def test_gpt2s_own_files_and_bare_tokenizer_files(tmp_path: Path) -> None:
    """`vocab.json` and `merges.txt` alone, with a config beside them, and a `tokenizer.json`: the same tokens."""
    gpt2_files(tmp_path / "g")
    assert {path.name for path in (tmp_path / "g").iterdir()} == {"vocab.json", "merges.txt"}
    loaded = load_tokenizer(str(tmp_path / "g"))
    assert loaded.eos_token == "<|endoftext|>" and len(loaded) == 400
    ids = [loaded(text, **AS_TEXT)["input_ids"] for text in TEXTS]
    assert loaded.decode(ids[3]) == TEXTS[3]
    (tmp_path / "g" / "config.json").write_text('{"model_type": "gpt2"}')
    described = load_tokenizer(str(tmp_path / "g"))
    assert [described(text, **AS_TEXT)["input_ids"] for text in TEXTS] == ids
    loaded.save_pretrained(tmp_path / "saved")
    fast = load_encoder(tmp_path / "saved", len(loaded), int(loaded.eos_token_id))  # type: ignore
    assert isinstance(fast, RustEncoder) and not fast.uncut()
    documents = [Document("", text) for text in TEXTS]
    assert [one.tolist()[:-1] for one in encode_documents(fast, documents)] == ids
    bare = tmp_path / "bare.json"
    bare.write_bytes((tmp_path / "saved" / "tokenizer.json").read_bytes())
    assert load_tokenizer(str(bare)).eos_token == "<|endoftext|>"
    assert load_tokenizer(str(bare))(TEXTS[3], **AS_TEXT)["input_ids"] == ids[3]
    assert load_tokenizer(str(tmp_path / "saved" / "tokenizer.json")).eos_token == "<|endoftext|>"


def test_a_file_that_is_no_tokenizer_or_has_no_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(CocomixError, match=r"no tokenizer can be loaded from .*x\.json"):
        load_tokenizer(str(tmp_path / "x.json"))
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "y.json"))
    with pytest.raises(CocomixError, match="no end-of-text token"):
        load_tokenizer(str(tmp_path / "y.json"))


def test_a_small_corpus_starts_no_process(
    corpus: Corpus, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    monkeypatch.setattr(workers, "cores", lambda: 200)
    jobs = jobs_of(corpus, tmp_path)
    encode_parts(jobs, TokenizerSpec(tokenizer_folder, 500, 0), None, lambda _: None)
    assert all(job.part.exists() for job in jobs)
