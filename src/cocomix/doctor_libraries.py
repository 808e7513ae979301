"""Required packages and extras, against the ranges that pyproject.toml gives them."""

import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cocomix
from cocomix.doctor_check import Check, Finding, State, Where
from cocomix.utils.errors import CocomixError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PURPOSE = {
    "hub": "data sets of the Hugging Face hub, and Parquet files",
    "eval": "the tasks of lm-evaluation-harness",
    "track": "TensorBoard and other trackers",
    "interop": "comparing with SAELens and sparsify",
    "docs": "building the documentation",
    "audit": "looking for known vulnerabilities",
    "dev": "the tests",
}
"""What each extra is for."""


class Wanted(NamedTuple):
    """What the package asks for."""

    core: "list[Requirement]"
    extras: "dict[str, list[Requirement]]"


class RequirementsCheck(Check):
    """Every required package is there, in a version that fits."""

    title = "packages"

    def look(self, where: Where) -> Iterator[Finding]:
        core = wanted().core
        wrong = [problem for one in core if (problem := _problem(one)) is not None]
        for one, found in wrong:
            yield Finding(State.FIX, one.name, f"{found}, needed is {one}", f"pip install '{one}'")
        if not wrong:
            yield Finding(State.FINE, self.title, f"all {len(core)} required ones fit")


class ExtrasCheck(Check):
    """Which extras are there, and how to have the others."""

    title = "extras"

    def look(self, where: Where) -> Iterator[Finding]:
        for name, needed in wanted().extras.items():
            wrong = [problem for one in needed if (problem := _problem(one)) is not None]
            purpose = f" (for {PURPOSE[name]})" if name in PURPOSE else ""
            if not wrong:
                yield Finding(State.FINE, f"extra {name}", f"installed{purpose}")
            else:
                missing = ", ".join(f"{one.name}: {found}" for one, found in wrong)
                mend = f"pip install 'cocomix[{name}]' if you want it"
                yield Finding(State.NOTE, f"extra {name}", f"{missing}{purpose}", mend)


def wanted() -> Wanted:
    """What the source tree's pyproject.toml asks for, or what was recorded when the package was installed.

    Raises:
        CocomixError: neither can be found.
    """
    from packaging.requirements import Requirement

    project = _project(Path(cocomix.__file__).parents[2] / "pyproject.toml")
    if project is not None:
        core = [Requirement(text) for text in project["dependencies"]]
        optional = project.get("optional-dependencies", {})
        return Wanted(core, {name: [Requirement(text) for text in texts] for name, texts in optional.items()})
    try:
        about = metadata.metadata("cocomix")
    except metadata.PackageNotFoundError:
        raise CocomixError("cocomix is not installed as a package; run `pip install -e .` in its folder") from None
    every = [Requirement(text) for text in about.get_all("Requires-Dist") or []]
    core = [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]
    names = about.get_all("Provides-Extra") or []
    return Wanted(core, {name: [one for one in every if _only_for(one, name)] for name in names})


def _only_for(one: "Requirement", extra: str) -> bool:
    marker = one.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _project(path: Path) -> dict[str, Any] | None:
    """The project table, if this is our source tree's file."""
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return None
    return project if project.get("name") == "cocomix" else None


def _problem(one: "Requirement") -> "tuple[Requirement, str] | None":
    """What is wrong with the installed version of a package, in a few words."""
    try:
        version = metadata.version(one.name)
    except metadata.PackageNotFoundError:
        return one, "not installed"
    return None if one.specifier.contains(version, prereleases=True) else (one, f"{version} is installed")
