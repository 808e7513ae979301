"""Corpus and tokens as commands: the same bytes whatever was killed, however many processes, and as before."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cocomix.config import load_config
from cocomix.pipeline.run import Run
from cocomix.tokens import load_tokenizer, tokenize_corpus
from command import cocomix, refused

pytestmark = pytest.mark.slow

SLOWED = """
import os, sys, time
keep = os.fsync
def slow(handle):  # what is short on real data lasts long enough to be killed in the middle
    time.sleep(0.02)
    keep(handle)
os.fsync = slow
from cocomix.cli import main
main()
"""


def texts(folder: Path, n: int) -> Path:
    """JSON lines of `n` documents, two lines bad."""
    chance = random.Random(n)
    words = ["alpha", "beta", "gamma,", "delta.\n", "ε", "zeta"]
    lines = [json.dumps({"text": " ".join(chance.choices(words, k=chance.randint(5, 200)))}) for _ in range(n)]
    lines[n // 3 : n // 3] = ["not json", '{"text": null}']
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return folder / "texts.jsonl"


def options(path: Path) -> list[str]:
    return [
        "corpus.source=jsonl",
        f"corpus.options={{path: {path}}}",
        "corpus.file_bytes=5000",
        "tokens.vocab_size=300",
        "tokens.shard_tokens=5000",
    ]


def content(run: Path) -> dict[str, str]:
    """Checksum of every file of both stages but what says when they were made."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in {"stage.json", "config.yaml", ".checked.json"}
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, with one worker."""
    home = tmp_path_factory.mktemp("data")
    given = options(texts(home, 300))
    config = load_config(Path(__file__).parents[2] / "src/cocomix/recipes/tiny.yaml", [*given, "tokens.workers=1"])
    run = Run(home / "whole", config)
    for name in ("corpus", "tokens"):
        run.run_stage(name)
    return home


def killed(home: Path, command: str, run: str, wanted: int, chance: random.Random, *more: str) -> int:
    """Start the command anew until it has been killed `wanted` times at random moments of its work; the rest runs out."""
    kills = 0
    arguments = [sys.executable, "-c", SLOWED, command, "-r", run, *options(home / "texts.jsonl"), *more]
    while True:
        process = subprocess.Popen(arguments, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if kills < wanted:
            partial = home / run / ".partial"
            begun = {path.name for path in partial.rglob("*")}
            while process.poll() is None and {path.name for path in partial.rglob("*")} <= begun | {"seconds.json"}:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.7))
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, output.decode()
        kills += 1


def test_killed_at_random_moments_it_ends_in_the_same_bytes(whole: Path) -> None:
    chance = random.Random(time.time_ns())
    kills = [
        killed(whole, "corpus", "cut", 1, chance),
        killed(whole, "tokenize", "cut", 2, chance, "tokens.workers=1"),
    ]
    assert kills[0] <= 1 and sum(kills) >= 1, "nothing was killed, so nothing was tested"
    assert content(whole / "cut") == content(whole / "whole")
    assert not list((whole / "cut" / ".partial").iterdir())


def test_two_processes_of_torchrun_with_workers_of_their_own(whole: Path) -> None:
    cocomix("corpus", "-r", "two", *options(whole / "texts.jsonl"), cwd=whole)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cocomix"]
    done = subprocess.run(
        [*launch, "tokenize", "-r", "two", "tokens.workers=4"], cwd=whole, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert content(whole / "two") == content(whole / "whole")


def test_bad_records_are_counted_printed_and_written_down(whole: Path) -> None:
    done = cocomix("corpus", "-r", "whole", *options(whole / "texts.jsonl"), cwd=whole)
    assert "2 bad records skipped, see whole/corpus/skipped.jsonl" in done.stdout
    reports = [json.loads(line) for line in (whole / "whole/corpus/skipped.jsonl").read_text().splitlines()]
    assert [report["place"] for report in reports] == ["texts.jsonl:101", "texts.jsonl:102"]
    assert json.loads((whole / "whole/corpus/stage.json").read_text())["figures"]["skipped"] == 2


def test_sizes_and_workers_redo_nothing(whole: Path) -> None:
    records = [whole / "whole" / name / "stage.json" for name in ("corpus", "tokens")]
    before = [path.stat().st_mtime_ns for path in records]
    cocomix("tokenize", "-r", "whole", "corpus.file_bytes=77", "tokens.workers=2", cwd=whole)
    assert [path.stat().st_mtime_ns for path in records] == before


def test_the_tokens_are_the_slow_twins(whole: Path, tmp_path: Path) -> None:
    config = load_config(whole / "whole" / "config.yaml")
    run = Run(whole / "whole", config)
    from cocomix.corpus import Corpus

    tokenizer = load_tokenizer(str(run.tokens.folder / "tokenizer"))
    for split in ("train", "val", "test"):
        documents = Corpus(run.corpus.folder / "text").documents(split)
        twin = tokenize_corpus(tokenizer, documents, tmp_path / split, shard_tokens=5000)
        assert twin.fingerprint == run.tokens.shards(split).fingerprint
    test = list(Corpus(run.corpus.folder / "text").documents("test"))
    n_bytes = sum(len(document.text.encode()) for document in test)
    assert run.tokens.figures["bytes_per_token"] == n_bytes / run.tokens.figures["tokens"]["test"]


def test_parts_of_texts_that_were_replaced_are_not_used(whole: Path, tmp_path: Path) -> None:
    """The same settings over another text: what a stopped attempt left behind is of no use."""
    given = options(texts(tmp_path, 200))
    recipe = Path(__file__).parents[2] / "src/cocomix/recipes/tiny.yaml"
    runs = {name: Run(tmp_path / name, load_config(recipe, given)) for name in ("stopped", "fresh")}
    runs["stopped"].run_stage("corpus")

    def stop(*_: object) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        runs["stopped"].tokens.run(stop)
    assert list((tmp_path / "stopped/.partial").glob("tokens-*/parts/*.json"))
    (tmp_path / "texts.jsonl").write_text((whole / "texts.jsonl").read_text().replace("alpha", "omega"))
    __import__("shutil").rmtree(tmp_path / "stopped" / "corpus")
    for run in runs.values():
        for name in ("corpus", "tokens"):
            run.run_stage(name)
    assert content(tmp_path / "stopped") == content(tmp_path / "fresh")


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """A command killed with -9 leaves no process behind that goes on working or waits for ever."""
    cocomix("corpus", "-r", "r", *options(texts(tmp_path, 300)), cwd=tmp_path)
    marked = os.environ | {"COCOMIX_TEST_MARK": str(tmp_path)}
    arguments = [sys.executable, "-m", "cocomix", "tokenize", "-r", "r", "tokens.workers=2"]
    process = subprocess.Popen(arguments, cwd=tmp_path, env=marked, stdout=subprocess.DEVNULL)

    def alive() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                if str(tmp_path).encode() in entry.read_bytes():
                    found.append(entry.parent.name)
            except OSError:
                continue
        return found

    if not Path("/proc/self/environ").exists():
        pytest.skip("looks for processes in /proc")
    deadline = time.monotonic() + 60
    while len(alive()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(alive()) >= 3 or process.poll() == 0
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive()


def test_a_trained_tokenizer_may_read_a_part_of_the_corpus(whole: Path, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "src/cocomix/recipes/tiny.yaml"
    given = [*options(whole / "texts.jsonl"), "tokens.workers=1"]
    run = Run(tmp_path / "r", load_config(recipe, [*given, "tokens.train_chars=20000"]))
    for name in ("corpus", "tokens"):
        run.run_stage(name)
    from cocomix.corpus import Corpus
    from cocomix.tokens import train_tokenizer

    corpus = Corpus(run.corpus.folder / "text")
    every = corpus.count("train", "chars") // 20000
    assert every > 2
    some = [document.text for document in corpus.documents("train")][::every]
    train_tokenizer(some, 300, tmp_path / "twin")
    written = (run.tokens.folder / "tokenizer" / "tokenizer.json").read_bytes()
    assert written == (tmp_path / "twin" / "tokenizer.json").read_bytes()
    assert written != (whole / "whole/tokens/tokenizer/tokenizer.json").read_bytes()


def test_a_source_that_cannot_go_on_is_one_sentence(tmp_path: Path) -> None:
    path = texts(tmp_path, 20)
    refused(
        cocomix(
            "corpus",
            "-r",
            "r",
            "corpus.source=parquet",
            f"corpus.options={{path: {path.parent}}}",
            cwd=tmp_path,
            check=False,
        ),
        "there is no file",
        ".parquet",
    )
