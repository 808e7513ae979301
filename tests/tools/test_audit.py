"""The bill of materials holds every pin, and nothing unaudited passes for clean."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import audit

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def test_everything_asked_for_is_pinned_in_its_range_and_in_order() -> None:
    pinned = {canonicalize_name(name): version for name, version in audit.pins(CONSTRAINTS).items()}
    project = tomllib.loads((CONSTRAINTS.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    every = [Requirement(text) for texts in (project["dependencies"], *extras) for text in texts]
    assert len(every) > 20
    for one in every:
        assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one
    lines = CONSTRAINTS.read_text().splitlines()[1:]
    assert lines == sorted(set(lines), key=str.lower)


def test_the_bill_of_materials_is_valid_and_whole() -> None:
    pytest.importorskip("cyclonedx", reason="needs cocomix[audit]")
    pinned = audit.pins(CONSTRAINTS)
    bill = json.loads(audit.bill_of_materials(pinned))
    assert bill["bomFormat"] == "CycloneDX" and bill["specVersion"] == "1.6"
    assert bill["metadata"]["component"]["name"] == "cocomix"
    assert {one["name"]: one["version"] for one in bill["components"]} == pinned
    (torch,) = [one for one in bill["components"] if one["name"] == "torch"]
    assert torch["purl"] == f"pkg:pypi/torch@{pinned['torch']}"
    assert sum("licenses" in one for one in bill["components"]) > len(pinned) / 4
    (ours,) = [one for one in bill["dependencies"] if one["ref"] == bill["metadata"]["component"]["bom-ref"]]
    assert len(ours["dependsOn"]) == len(pinned)


FINE: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
SKIPPED: dict[str, Any] = {"name": "b", "skip_reason": "not found"}
BAD: dict[str, Any] = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1", "3.0"]}]}
UNFIXED: dict[str, Any] = {"name": "d", "version": "2", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([FINE], 0, "no known vulnerability in 1 packages"),
        ([FINE, BAD], 1, "c 2 has PYSEC-1; raise its pin to 2.1 or 3.0"),
        ([UNFIXED], 1, "no fixed version yet"),
        ([FINE, SKIPPED], 2, "not audited: b"),
        ([BAD, SKIPPED], 1, "not audited: b"),
        ([SKIPPED, SKIPPED], 2, "knows none of the 2 packages; run `make audit` where it can be reached"),
    ],
)
def test_the_verdict(packages: list[dict[str, Any]], code: int, words: str) -> None:
    found, said = audit.verdict({"dependencies": packages})
    assert found == code and words in "\n".join(said)


def test_no_answer_is_one_sentence(tmp_path: Path) -> None:
    code, (said,) = audit.verdict("connection refused")
    assert code == 2 and said.startswith("audit: the vulnerability service gave no answer (connection refused); run")
    (tmp_path / "constraints.txt").write_text("not a requirement ==\n")
    assert isinstance(audit.query_service(tmp_path / "constraints.txt", "pypi"), str)
