"""What we are made of, and what is known to be wrong with it: `make audit`.

Writes a CycloneDX bill of materials of constraints.txt to build/sbom.json, which needs no network, then asks a
vulnerability service about every pin by pip-audit. A pin that the service does not know counts as not audited: a
mirror that answers "not found" to everything would otherwise pass for a clean bill.

Exit code 0: no known vulnerability; 1: some, each named; 2: not all could be audited.
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
    """Versions by package, from lines `name==version`."""
    lines = (line.partition("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if line)


def bill_of_materials(pinned: dict[str, str]) -> str:
    """CycloneDX 1.6 as JSON: a library a pin, with its licence where the package is installed in that version."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL

    bom, licences = Bom(), LicenseFactory()
    ours = Component(name="cocomix", version=metadata.version("cocomix"), type=ComponentType.APPLICATION)
    bom.metadata.component = ours
    parts = []
    for name, version in pinned.items():
        licence = _licence(name, version)
        address = PackageURL("pypi", None, re.sub(r"[-_.]+", "-", name).lower(), version)
        parts.append(
            Component(
                name=name,
                version=version,
                type=ComponentType.LIBRARY,
                purl=address,
                bom_ref=str(address),
                licenses=[licences.make_from_string(licence)] if licence else [],
            )
        )
    bom.components.update(parts)
    bom.register_dependency(ours, parts)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def _licence(name: str, version: str) -> str | None:
    """What the installed package says of itself, if it is that version; whole licence texts are left out."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    said = found.metadata["License-Expression"] or found.metadata["License"] or ""
    return said if found.version == version and 0 < len(said) < 80 and "\n" not in said else None


def ask(constraints: Path, service: str) -> dict[str, Any] | str:
    """pip-audit's report on every pin, or the reason why there is none."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(constraints), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return last[0].partition("(")[0].strip()  # what follows repeats the cause in other words


def verdict(report: dict[str, Any] | str) -> tuple[int, list[str]]:
    """Exit code and what to print."""
    retry = "run `make audit` where it can be reached, or with ARGS='--service osv'"
    if isinstance(report, str):
        return 2, [f"audit: the vulnerability service gave no answer ({report}); {retry}"]
    packages = report["dependencies"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if len(skipped) == len(packages):
        return 2, [f"audit: the vulnerability service knows none of the {len(packages)} packages; {retry}"]
    bad = [(one, found) for one in packages for found in one.get("vulns", [])]
    said = []
    for one, found in bad:
        fixed = " or ".join(found["fix_versions"])
        mend = f"raise its pin to {fixed}" if fixed else "there is no fixed version yet"
        said.append(f"audit: {one['name']} {one['version']} has {found['id']}; {mend}")
    if skipped:
        said.append(f"audit: not known to the service, so not audited: {', '.join(skipped)}; look at them by hand")
    if not said:
        said.append(f"audit: no known vulnerability in {len(packages)} packages")
    return (1 if bad else 2 if skipped else 0), said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--sbom", type=Path, default=ROOT / "build" / "sbom.json", help="file of the bill of materials")
    parser.add_argument("--service", default="pypi", choices=["pypi", "osv"], help="who is asked")
    options = parser.parse_args()
    options.sbom.parent.mkdir(parents=True, exist_ok=True)
    pinned = pins(options.constraints)
    options.sbom.write_text(bill_of_materials(pinned), encoding="utf-8")
    print(f"audit: bill of materials of {len(pinned)} packages in {options.sbom}")
    code, said = verdict(ask(options.constraints, options.service))
    print("\n".join(said), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
