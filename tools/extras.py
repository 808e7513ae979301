"""Does cocomix work with no extra, and with each extra alone? In clean environments, as users have them.

    python -m tools.extras [EXTRA ...] [--work build/extras]

`none` is the environment without extras. It installs the pinned core once, then each extra into an environment of its
own that sees the core and nothing else. In each: every module of cocomix is imported; one that cannot be must say which
other extra it needs, in one sentence; so must every use of another extra (`USES`). `cocomix --help` works and
`cocomix doctor` lists the extra as installed. What an extra brings is imported, too. Needs a package index; minutes.

Which module needs which extra is read off the code (`guards`): an import in a `try` whose handler names the extra.
"""

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "cocomix"
NONE = "none"
NEWER = {"compression"}
"""Modules of Python's own library that came after the oldest version cocomix runs on."""
EXTRA = re.compile(r"cocomix\[(\w+)\]")
USES = {
    "hub": "from cocomix.data import SOURCES; next(iter(SOURCES['hf']('owner/name')))",
    "eval": "import cocomix.evaluation.harness",
    "gguf": "from cocomix.utils.gguf import *; Path('a.gguf').write_bytes(MAGIC); converted(Path('a.gguf'))",
    "lora": "import torch; from cocomix.model.adapters import add_lora; add_lora(torch.nn.Module(), {})",
    "track": "from cocomix.train.trackers import open_trackers; open_trackers(['tensorboard'], Path('logs'), 'x', {})",
}
"""For each extra that the code names, what needs it; without it this must be refused in a sentence that names it."""


class Import(NamedTuple):
    """An import of a package that is not cocomix and not Python's."""

    path: Path
    line: int
    package: str


def declared() -> dict[str, list[str]]:
    """The requirements of the core, called `none`, and of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {NONE: project["dependencies"], **project["optional-dependencies"]}


def closure(requirements: list[str]) -> set[str]:
    """Top-level packages that installing `requirements` brings here, through all that these require."""
    left, seen = [Requirement(text) for text in requirements], set()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        try:
            required = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        extras = [{"extra": extra} for extra in (*requirement.extras, "")]
        left += [one for one in required if one.marker is None or any(map(one.marker.evaluate, extras))]
    return {package for name in seen for package in _provided(name)}


@cache
def _provided(name: str) -> frozenset[str]:
    """Top-level packages of an installed distribution; empty if it is not installed."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return frozenset()
    listed = (distribution.read_text("top_level.txt") or "").split()
    return frozenset(listed or {Path(file.parts[0]).name.partition(".")[0] for file in distribution.files or ()})


@cache
def _parsed() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCES.rglob("*.py"))}


def imports() -> Iterator[Import]:
    """All imports of other packages in cocomix, also those inside functions."""
    for path, module in _parsed().items():
        for node in ast.walk(module):
            for name in _modules(node):
                package = name.partition(".")[0]
                if package != "cocomix" and package not in sys.stdlib_module_names | NEWER:
                    yield Import(path, getattr(node, "lineno", 0), package)


@cache
def guards() -> dict[Path, dict[str, str]]:
    """By file: the extra that a sentence names for each package whose import is in a `try`."""
    found: dict[Path, dict[str, str]] = {}
    for path, module in _parsed().items():
        for node in ast.walk(module):
            if not isinstance(node, ast.Try):
                continue
            named = EXTRA.search("".join(ast.unparse(handler) for handler in node.handlers))
            if named is not None:
                names = [name for part in node.body for name in _modules(part)]
                found.setdefault(path, {}).update({name.partition(".")[0]: named[1] for name in names})
    return found


def guard_of(needed: Import) -> str | None:
    """The extra that is named before an import can fail: in its file, its folder's `__init__`, or one it imports."""
    known = guards()
    imported = {
        folder / "__init__.py"
        for node in ast.walk(_parsed()[needed.path])
        for name in _modules(node)
        for folder in (SOURCES.parent / name.replace(".", "/"), (SOURCES.parent / name.replace(".", "/")).parent)
    }
    for path in (needed.path, needed.path.with_name("__init__.py"), *sorted(imported)):
        if needed.package in known.get(path, {}):
            return known[path][needed.package]
    return None


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []


# --- Environments ---

CHECK = """
import importlib, json, pkgutil, sys
from importlib import metadata
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import cocomix
from cocomix.utils.errors import CocomixError

uses, requirements = json.loads(sys.argv[1])
answer = {"modules": 0, "refused": {}, "failed": {}, "uses": {}}

def tried(where, name, work):
    try:
        work()
    except CocomixError as error:
        answer[where][name] = str(error)
    except BaseException as error:
        answer["failed" if where == "refused" else where][name] = f"{type(error).__name__}: {error}"

for module in pkgutil.walk_packages(cocomix.__path__, "cocomix.", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        answer["modules"] += 1
        tried("refused", module.name, lambda: importlib.import_module(module.name))
names = {canonicalize_name(Requirement(text).name) for text in requirements}
for package, distributions in metadata.packages_distributions().items():
    if names & set(map(canonicalize_name, distributions)) and package.isidentifier() and not package.startswith("_"):
        tried("failed", package, lambda: importlib.import_module(package))
for extra, program in uses.items():
    tried("uses", extra, lambda: exec(program, {"Path": Path}))
print("\\n" + json.dumps(answer))
"""


def run(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A finished process with its output as text."""
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=1800)


def install(python: Path, pip: Path, *what: object) -> None:
    """Install with the pinned versions."""
    done = run(
        pip, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check", "-c",
        ROOT / "constraints.txt", *what,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"installing {' '.join(map(str, what))} failed:\n{done.stderr[-2000:]}")


def environment(folder: Path, sees: Path | None = None) -> Path:
    """A new virtual environment; its Python. It has pip, or it sees the packages of the environment `sees`."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=sees is None, symlinks=True)
    if sees is not None:
        (packages,) = folder.glob("lib/python*/site-packages")
        (others,) = sees.glob("lib/python*/site-packages")
        (packages / "core.pth").write_text(f"{others}\n", encoding="utf-8")
    return folder / "bin" / "python"


def make_core(work: Path) -> Path:
    """The environment with the core alone; cocomix is installed from a copy, as a package and not as a checkout."""
    copy = work / "source"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    core = work / NONE
    python = environment(core)
    torch = re.search(r"(?im)^torch==.*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    install(python, python, torch[0] if torch else "torch")
    install(python, python, copy)
    return core


def problems(extra: str, python: Path, empty: Path) -> list[str]:
    """What does not work in an environment that has `extra` alone."""
    done = run(python, "-I", "-c", CHECK, json.dumps([USES, declared()[extra] if extra != NONE else []]), cwd=empty)
    if done.returncode:
        return [f"the check ended with {done.stderr[-500:]}"]
    answer = json.loads(done.stdout.splitlines()[-1])
    wrong = [f"{name}: {error}" for name, error in answer["failed"].items()]
    for name, error in answer["refused"].items():
        named = EXTRA.search(error)
        if named is None or named[1] == extra or "\n" in error:
            wrong.append(f"{name}: {error}")
    for name in USES:
        error = answer["uses"].get(name, "")
        named = EXTRA.search(error)
        if name == extra and named is not None:
            wrong.append(f"the extra {name} is installed, and yet: {error}")
        covered = {Requirement(text).name for text in declared()[name]} <= {
            Requirement(text).name for text in declared().get(extra, [])
        }
        if name != extra and not covered and (named is None or named[1] != name or "\n" in error):
            wrong.append(f"without the extra {name}, its use does not name it: {error!r}")
    said = run(python, "-I", "-m", "cocomix", "--help", cwd=empty)
    if said.returncode or "Usage" not in said.stdout:
        wrong.append(f"cocomix --help: {said.stderr[-500:]}")
    doctor = run(python, "-I", "-m", "cocomix", "doctor", cwd=empty)
    line = next((line for line in doctor.stdout.splitlines() if f"extra {extra} " in line), "")
    if doctor.returncode not in (0, 1) or "Traceback" in doctor.stderr or (extra != NONE and "installed" not in line):
        wrong.append(f"cocomix doctor: {line or doctor.stderr[-500:] or doctor.stdout[-500:]}")
    print(f"{extra}: {answer['modules']} modules, {len(answer['refused'])} refused by name of their extra", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", help="default: none and every extra but dev")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "extras", help="folder of the environments")
    arguments = parser.parse_args()
    chosen = arguments.extras or [name for name in declared() if name != "dev"]
    work = arguments.work.resolve()
    (work / "empty").mkdir(parents=True, exist_ok=True)
    core, failed = make_core(work), False
    for extra in chosen:
        python = core / "bin" / "python"
        if extra != NONE:
            python = environment(work / extra, core)
            install(python, core / "bin" / "python", *declared()[extra])
        for problem in problems(extra, python, work / "empty"):
            failed = True
            print(f"{extra}: FAILED: {problem}", flush=True)
        if extra != NONE:
            shutil.rmtree(work / extra, ignore_errors=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
