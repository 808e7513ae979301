"""`make audit`: a bill of materials of all pinned packages, and their known vulnerabilities.

Writes a CycloneDX bill of materials of constraints.txt to build/sbom.json, which needs no network. Then asks a
vulnerability service about every pinned version through pip-audit. A version that the service does not know counts as
not audited; otherwise a mirror that answers "not found" to everything would look like a clean result.

Exit code 0: no known vulnerability; 1: some, each named; 2: not all versions could be audited.
"""

import argparse
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def pins(constraints: Path) -> dict[str, str]:
    """Return versions by package, from lines `name==version`."""
    lines = (line.partition("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if line)


def bill_of_materials(pinned: dict[str, str]) -> str:
    """Return CycloneDX 1.6 JSON with one library per pin, and its licence if that version is installed."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    bom, licences = Bom(), LicenseFactory()
    root = Component(name="cocomix", version=metadata.version("cocomix"), type=ComponentType.APPLICATION)
    bom.metadata.component = root
    components = []
    for name, version in pinned.items():
        licence = _licence(name, version)
        purl = PackageURL("pypi", None, re.sub(r"[-_.]+", "-", name).lower(), version)
        components.append(
            Component(
                name=name,
                version=version,
                type=ComponentType.LIBRARY,
                purl=purl,
                bom_ref=str(purl),
                licenses=[licences.make_from_string(licence)] if licence else [],
            )
        )
    bom.components.update(components)
    bom.register_dependency(root, components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def _licence(name: str, version: str) -> str | None:
    """Return the licence in the installed package's metadata, if it is that version and not a full licence text."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    licence = distribution.metadata["License-Expression"] or distribution.metadata["License"] or ""
    return licence if distribution.version == version and 0 < len(licence) < 80 and "\n" not in licence else None


def query_service(constraints: Path, service: str) -> dict[str, Any] | str:
    """Return pip-audit's report on every pin, or the reason why there is none."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(constraints), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
    result = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(result.stdout)
    except ValueError:
        last = result.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        return last[0].partition("(")[0].strip()  # the rest repeats the cause in other words


def verdict(report: dict[str, Any] | str) -> tuple[int, list[str]]:
    """Return the exit code and the lines to print."""
    retry = "run `make audit` where it can be reached, or with ARGS='--service osv'"
    if isinstance(report, str):
        return 2, [f"audit: the vulnerability service gave no answer ({report}); {retry}"]
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return 2, [f"audit: the vulnerability service knows none of the {len(packages)} packages; {retry}"]
    vulnerable = [(package, flaw) for package in packages for flaw in package.get("vulns", [])]
    lines = []
    for package, flaw in vulnerable:
        fixed = " or ".join(flaw["fix_versions"])
        fix = f"raise its pin to {fixed}" if fixed else "there is no fixed version yet"
        lines.append(f"audit: {package['name']} {package['version']} has {flaw['id']}; {fix}")
    if skipped:
        lines.append(f"audit: not known to the service, so not audited: {', '.join(skipped)}; check them by hand")
    if not lines:
        lines.append(f"audit: no known vulnerability in {len(packages)} packages")
    return (1 if vulnerable else 2 if skipped else 0), lines


def main() -> int:
    """Parse the command line, write the bill of materials, audit, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt", help="file with the pins")
    parser.add_argument("--sbom", type=Path, default=ROOT / "build" / "sbom.json", help="bill of materials")
    parser.add_argument("--service", default="pypi", choices=["pypi", "osv"], help="vulnerability service")
    options = parser.parse_args()
    options.sbom.parent.mkdir(parents=True, exist_ok=True)
    pinned = pins(options.constraints)
    options.sbom.write_text(bill_of_materials(pinned), encoding="utf-8")
    print(f"audit: bill of materials of {len(pinned)} packages in {options.sbom}")
    code, lines = verdict(query_service(options.constraints, options.service))
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
