"""Corpus and tokens as stages: the same bytes whatever was killed, however many processes, and as before."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cocomix.data import (
    SOURCES,
    SPLITS,
    Corpus,
    Document,
    TextSource,
    load_tokenizer,
    register_source,
    tokenize_corpus,
    train_tokenizer,
)
from cocomix.pipeline.attempts import LOCKS
from cocomix.pipeline.config import CorpusConfig, load_config
from cocomix.pipeline.run import Run
from cocomix.utils.errors import CocomixError
from tests.helpers.distributed_programs import launch
from tests.helpers.forked import CONTEXT

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "src/cocomix/recipes/tiny.yaml"


def texts(folder: Path, n: int) -> Path:
    """JSON lines of `n` documents, two lines bad."""
    chance = random.Random(n)
    words = ["alpha", "beta", "gamma,", "delta.\n", "ε", "zeta"]
    lines = [json.dumps({"text": " ".join(chance.choices(words, k=chance.randint(5, 200)))}) for _ in range(n)]
    lines[n // 3 : n // 3] = ["not json", '{"text": null}']
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return folder / "texts.jsonl"


def run_of(folder: Path, source: Path, *more: str) -> Run:
    given = [f"corpus={{source: jsonl, options: {{path: {source}}}, file_bytes: 5000}}", "tokens.shard_tokens=5000"]
    return Run(folder, load_config(RECIPE, [*given, "tokens.vocab_size=300", "tokens.workers=1", *more]))


def content(run: Path) -> dict[str, str]:
    """Checksum of every file of both stages but what says when they were made, and what was looked at."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in {"stage.json", "config.yaml", ".config.json", "verified.json"}
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`texts.jsonl`, and `run`, which was never stopped and had one worker."""
    home = tmp_path_factory.mktemp("data")
    run = run_of(home / "run", texts(home, 300))
    for name in ("corpus", "tokens"):
        run.run_stage(name)
    return home


def with_corpus(home: Path, run: Path) -> Path:
    """A run that has the corpus of the whole one, with the lock files of its making, and no tokens yet."""
    shutil.copytree(home / "run" / "corpus", run / "corpus")
    (run / LOCKS).mkdir()
    for lock in (home / "run" / LOCKS).glob("corpus*.lock"):
        shutil.copy(lock, run / LOCKS)
    shutil.copy(home / "run" / "config.yaml", run / "config.yaml")
    return run


def slowly(folder: Path, source: Path, stage: str) -> None:
    """Do one stage, with what is short on real data lasting long enough to be killed in the middle."""
    keep = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.01)
        keep(handle)

    os.fsync = slow
    run_of(folder, source).run_stage(stage)


def test_killed_at_random_moments_both_stages_end_in_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    seed = time.time_ns()
    chance, kills = random.Random(seed), dict.fromkeys(("corpus", "tokens"), 0)
    for stage in kills:
        while True:
            process = CONTEXT.Process(target=slowly, args=(tmp_path / "cut", whole / "texts.jsonl", stage))
            process.start()
            process.join(chance.uniform(0.1, 1.0) if kills[stage] < 4 else 60)
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -9
            kills[stage] += 1
    assert sum(kills.values()) >= 2, f"{kills}: nothing was killed, so nothing was tested"
    assert content(tmp_path / "cut") == content(whole / "run"), f"seed {seed}, {kills}"
    assert not list((tmp_path / "cut" / ".partial").iterdir())


def test_the_command_killed_leaves_no_process_behind_and_goes_on(whole: Path, tmp_path: Path) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("looks for processes in /proc")
    with_corpus(whole, tmp_path / "r")
    arguments = [sys.executable, "-m", "cocomix", "tokenize", "-r", "r", "tokens.workers=2"]
    marked = os.environ | {"COCOMIX_TEST_MARK": str(tmp_path)}
    process = subprocess.Popen(arguments, cwd=tmp_path, env=marked, stdout=subprocess.DEVNULL)

    def alive() -> int:
        found = 0
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                found += str(tmp_path).encode() in entry.read_bytes()
            except OSError:
                continue
        return found

    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("r/.partial/tokens-*/parts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert process.poll() is None and alive() >= 3
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive()
    run_of(tmp_path / "r", whole / "texts.jsonl").run_stage("tokens")
    assert content(tmp_path / "r") == content(whole / "run")


def test_two_processes_of_a_launch_share_the_work(whole: Path, tmp_path: Path) -> None:
    """What torchrun does: the same command with RANK and WORLD_SIZE set; each makes half of the parts."""
    with_corpus(whole, tmp_path / "r")
    launch(2, "-m", "cocomix", "tokenize", "-r", "r", "tokens.workers=2", cwd=tmp_path)
    assert content(tmp_path / "r") == content(whole / "run")


def test_bad_records_are_counted_printed_and_written_down(whole: Path) -> None:
    stage = run_of(whole / "run", whole / "texts.jsonl").corpus
    assert stage.figures["skipped"] == 2
    assert f"2 bad records skipped, see {whole}/run/corpus/skipped.jsonl" in stage.describe(stage.figures)
    reports = [json.loads(line) for line in (whole / "run/corpus/skipped.jsonl").read_text().splitlines()]
    assert [report["place"] for report in reports] == ["texts.jsonl:101", "texts.jsonl:102"]


def test_sizes_and_workers_redo_nothing(whole: Path) -> None:
    run = run_of(whole / "run", whole / "texts.jsonl", "corpus.file_bytes=77", "tokens.workers=2")
    assert run.corpus.record() is not None and run.tokens.record() is not None
    assert run_of(whole / "run", whole / "texts.jsonl", "tokens.train_chars=5000").tokens.record() is None


def test_settings_of_runs_made_before_are_the_same(tmp_path: Path) -> None:
    """The stages' fingerprints of version 0.1: a finished run is not made again."""
    run = Run(tmp_path, load_config(RECIPE))
    assert (run.corpus.fingerprint[:16], run.tokens.fingerprint[:16]) == ("c4f5cb9d9d0bc338", "8bd2e5a19ae4ada6")


def test_the_tokens_are_the_slow_twins(whole: Path, tmp_path: Path) -> None:
    run = run_of(whole / "run", whole / "texts.jsonl")
    tokenizer = load_tokenizer(str(run.tokens.folder / "tokenizer"))
    corpus = Corpus(run.corpus.folder / "text")
    for split in SPLITS:
        twin = tokenize_corpus(tokenizer, corpus.documents(split), tmp_path / split, shard_tokens=5000)
        assert twin.fingerprint == run.tokens.shards(split).fingerprint
    n_bytes = sum(len(document.text.encode()) for document in corpus.documents("test"))
    assert run.tokens.figures["bytes_per_token"] == n_bytes / run.tokens.figures["tokens"]["test"]


def test_parts_of_texts_that_were_replaced_are_not_used(whole: Path, tmp_path: Path) -> None:
    """The same settings over another text: what a stopped attempt left behind is of no use."""
    source = texts(tmp_path, 200)
    runs = {name: run_of(tmp_path / name, source) for name in ("stopped", "fresh")}
    runs["stopped"].run_stage("corpus")

    def stop(_step: int, _total: int | None, note: dict[str, Any]) -> None:
        if "tokens" in note:  # a part is finished; the tokenizer's training reports, too
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        runs["stopped"].tokens.run(stop)
    assert list((tmp_path / "stopped/.partial").glob("tokens-*/parts/*.json"))
    source.write_text((whole / "texts.jsonl").read_text().replace("alpha", "omega"))
    shutil.rmtree(tmp_path / "stopped" / "corpus")
    for run in runs.values():
        for name in ("corpus", "tokens"):
            run.run_stage(name)
    assert content(tmp_path / "stopped") == content(tmp_path / "fresh")


def test_a_trained_tokenizer_may_read_a_part_of_the_corpus(whole: Path, tmp_path: Path) -> None:
    with_corpus(whole, tmp_path / "r")
    run = run_of(tmp_path / "r", whole / "texts.jsonl", "tokens.train_chars=20000")
    run.run_stage("tokens")
    corpus = Corpus(run.corpus.folder / "text")
    every = corpus.count("train", "chars") // 20000
    assert every > 2
    some = [document.text for document in corpus.documents("train")][::every]
    train_tokenizer(some, 300, tmp_path / "twin")
    written = (run.tokens.folder / "tokenizer" / "tokenizer.json").read_bytes()
    assert written == (tmp_path / "twin" / "tokenizer.json").read_bytes()
    assert written != (whole / "run/tokens/tokenizer/tokenizer.json").read_bytes()


def test_a_source_from_outside_the_package_works_in_a_run(tmp_path: Path) -> None:
    @register_source
    class RhymeSource(TextSource):
        """Numbered lines."""

        name = "rhyme"

        def __init__(self, lines: int, word: str = "stone") -> None:
            super().__init__()
            self.lines, self.word = lines, word

        def read(self, place: dict[str, Any]) -> Iterator[Document]:
            for number in range(place.get("next", 0), self.lines):
                self._place = {"next": number + 1}
                yield Document(str(number), f"{self.word} number {number} " * 20)

    try:
        options = ["corpus.source=rhyme", "corpus.every=1", "tokens.vocab_size=300", "tokens.workers=1"]
        run = Run(tmp_path / "run", load_config(RECIPE, [*options, "corpus.options={lines: 30, word: bone}"]))
        run.run_stage("corpus")
        tokens = run.run_stage("tokens")["tokens"]
        assert run.corpus.figures["source"] == "rhyme" and tokens["train"] > 1000
        wrong = Run(tmp_path / "wrong", load_config(RECIPE, [*options, "corpus.options={line: 30}"]))
        with pytest.raises(CocomixError, match="the text source rhyme has no option 'line'; it takes lines, word"):
            wrong.run_stage("corpus")
    finally:
        SOURCES.unregister("rhyme")
    with pytest.raises(CocomixError, match="no text source 'rhyme'; choose one of sotu, folder, jsonl, parquet, hf"):
        Run(tmp_path / "gone", load_config(RECIPE, options)).run_stage("corpus")
    assert load_config(tmp_path / "run" / "config.yaml").corpus.source == "rhyme"  # a finished run can still be read


def test_the_settings_name_every_source() -> None:
    description = CorpusConfig.model_fields["source"].description or ""
    assert all(name in description for name in SOURCES)
