"""Our own folder: `sae.safetensors`, and `sae.json` with everything else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.sae.formats.base import LoadedSae, SaeFormat
from cocomix.sae.reading import peek_json, words
from cocomix.sae.sae import ABOUT, TopKSAE


class CocomixFormat(SaeFormat):
    """Represents every autoencoder we can load."""

    name, title = "cocomix", "cocomix's own SAE format"
    metadata_file = ABOUT

    def detect(self, path: Path) -> bool:
        return (path / ABOUT).is_file()

    def load(self, path: Path, k: int) -> LoadedSae:
        about = self._about(path)
        model = words(about.get("model"), "model", path)
        return LoadedSae(TopKSAE.from_pretrained(path), self.name, self.hook(path), model, own_k=True)

    def hook(self, path: Path) -> str | None:
        about = self._about(path)
        layer = about.get("layer")
        return words(about.get("hook"), "hook", path) or (None if layer is None else f"layers.{layer}")

    def write(self, sae: TopKSAE, folder: Path, about: Mapping[str, Any]) -> None:
        sae.save_pretrained(folder, **about)

    @staticmethod
    def _about(path: Path) -> dict[str, Any]:
        found = peek_json(path / ABOUT).get("about")
        return found if isinstance(found, dict) else {}
