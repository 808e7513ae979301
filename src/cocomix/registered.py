"""Our model beside Transformers' own, without loading Transformers for it.

A finder on Python's import path waits for `transformers`, lets the others find it, and imports `cocomix.model`, which
registers itself, when it has been loaded. `cocomix.model` must therefore import nothing that imports Transformers
outside of itself: that other module could be the one that is being imported (a test sees to it).
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AWAITED, REGISTERS = "transformers", "cocomix.model"


def register_with_transformers() -> None:
    """Import `cocomix.model` now, if Transformers is loaded, else right after it is."""
    if AWAITED in sys.modules:
        import_module(REGISTERS)
    elif not any(isinstance(finder, _Awaiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Awaiting())


class _Awaiting(MetaPathFinder):
    """Finds Transformers as the other finders do, with a loader that calls us afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AWAITED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Announcing(spec.loader, self)
        return spec


class _Announcing(Loader):
    """Another loader that, when its module is there, imports ours and is no longer in the way."""

    def __init__(self, loader: Loader, finder: _Awaiting) -> None:
        self._loader, self._finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        import_module(REGISTERS)
