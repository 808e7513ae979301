"""Transformers' own model tests: fetched from its source distribution, run against our models, and summarised.

`--fetch` unpacks the tests of the installed version into build/. Without it, all of them are run
(tests/model/test_transformers_common.py) and the table in docs/explanation/transformers.md is written again.

The wheel has no tests, and the source distribution only those of the top folder: `tests/generation/test_utils.py`
(GenerationTesterMixin) and `tests/exporters` are left out of it, and so of this run; tests/model/test_generation.py
holds what `generate` promises.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "transformers.md"
BEGIN, END = "<!-- written by python -m tools.transformers_tests -->\n", "<!-- end -->\n"
EVERY = "COCOMIX_ALL_TRANSFORMERS_TESTS"
"""environment variable: run all tests of the mixins, and not only the quick ones"""


def source(version: str | None = None) -> Path:
    """Where the tests of the installed (or another) version of Transformers are unpacked."""
    return ROOT / "build" / f"transformers-{version or metadata.version('transformers')}" / "tests"


def fetch() -> str | None:
    """Download and unpack the tests; what went wrong, or None."""
    if source().is_dir():
        return None
    with tempfile.TemporaryDirectory() as folder:
        requirement = f"transformers=={metadata.version('transformers')}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", "--dest", folder, requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tar.gz"))
        if result.returncode or not archives:
            return (result.stderr.strip().splitlines() or ["no archive"])[-1]
        unpack(archives[0], source().parent)
    return None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the Python files of the archive's top `tests` folder into `folder`/tests."""
    with tarfile.open(archive) as opened, tempfile.TemporaryDirectory(dir=_made(folder.parent)) as partial:
        for member in opened.getmembers():
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py") and member.isfile():
                content = opened.extractfile(member)
                assert content is not None
                (_made(Path(partial) / "tests") / parts[2]).write_bytes(content.read())
        (Path(partial) / "tests").rename(_made(folder) / "tests")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Recorder:
    """A pytest plugin that keeps the outcome of each test, and the reason of what was not run or failed as expected."""

    def __init__(self) -> None:
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest for each phase of each test."""
        name = report.nodeid.split("::", 1)[-1]
        if hasattr(report, "wasxfail"):
            self.outcomes[name] = ("expected to fail" if report.skipped else "failed", report.wasxfail)
        elif report.skipped:
            self.outcomes[name] = ("skipped", str(report.longrepr[-1]).removeprefix("Skipped: "))
        elif report.failed:
            self.outcomes[name] = ("failed", "")
        elif report.when == "call":
            self.outcomes.setdefault(name, ("passed", ""))


def summary(outcomes: dict[str, tuple[str, str]]) -> str:
    """A Markdown summary of outcomes and reasons by test."""
    counts = Counter(outcome for outcome, _ in outcomes.values())
    version = metadata.version("transformers")
    total = ", ".join(f"{counts[name]} {name}" for name in ("passed", "skipped", "expected to fail", "failed"))
    lines = [f"Transformers {version}, {len(outcomes)} tests: {total}.", ""]
    for outcome, title in (
        ("failed", "Failed"),
        ("expected to fail", "Expected to fail, and checked to do so"),
        ("skipped", "Skipped by the test itself"),
    ):
        reasons: dict[str, list[str]] = {}
        for name, (each, reason) in outcomes.items():
            if each == outcome:
                reasons.setdefault(_cell(reason), []).append(name.rpartition("::")[2])
        if reasons:
            lines += [f"**{title}**", "", "| reason | tests |", "|---|---|"]
            ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
            lines += [f"| {reason} | {_tests(names)} |" for reason, names in ordered] + [""]
    return "\n".join(lines)


def _cell(reason: str) -> str:
    reason = re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", reason.partition("\n")[0])
    return re.sub(r"^CoCoMix\w+", "The model", reason).replace("|", "/").replace("<", "&lt;")


def _tests(names: list[str]) -> str:
    names = sorted(set(names))
    return ", ".join(f"`{name}`" for name in names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def run() -> dict[str, tuple[str, str]]:
    """Run all tests; outcome and reason of each."""
    import pytest

    os.environ[EVERY] = "1"
    recorder = Recorder()
    file = ROOT / "tests" / "model" / "test_transformers_common.py"
    pytest.main(["-n0", "-q", "--tb=short", str(file)], plugins=[recorder])
    return recorder.outcomes


def main() -> int:
    """The command; 1 if a test failed or none ran."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fetch", action="store_true", help="only download the tests")
    only_fetch = parser.parse_args().fetch
    problem = fetch()
    if problem is not None:
        print(f"Transformers' own tests could not be fetched and are skipped: {problem}")
    if only_fetch:
        return 0
    outcomes = run() if problem is None else {}
    if not outcomes:
        return 1
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{summary(outcomes)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return int(any(outcome == "failed" for outcome, _ in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
