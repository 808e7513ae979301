"""cocomix's own format: a folder with `sae.safetensors`, and `sae.json` with everything else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cocomix.sae.formats.base import LoadedSae, SaeFormat
from cocomix.sae.reading import optional_text, peek_json, window_metadata
from cocomix.sae.sae import SETTINGS, TopKSAE


class CocomixFormat(SaeFormat):
    """cocomix's own folders; they can hold every autoencoder that can be loaded."""

    name, title = "cocomix", "cocomix's own SAE format"
    metadata_file = SETTINGS

    def detect(self, path: Path) -> bool:
        return (path / SETTINGS).is_file()

    def load(self, path: Path, k: int) -> LoadedSae:
        metadata = self._metadata(path)
        model = optional_text(metadata.get("model"), "model", path)
        sae = TopKSAE.from_pretrained(path)
        sae.to(torch.promote_types(sae.encoder_weight.dtype, torch.float32))  # as the other formats do
        return LoadedSae(sae, self.name, self.hook(path), model, True, *window_metadata(metadata, path))

    def hook(self, path: Path) -> str | None:
        metadata = self._metadata(path)
        layer = metadata.get("layer")
        return optional_text(metadata.get("hook"), "hook", path) or (None if layer is None else f"layers.{layer}")

    def write(self, sae: TopKSAE, folder: Path, metadata: Mapping[str, Any]) -> None:
        sae.save_pretrained(folder, **metadata)

    @staticmethod
    def _metadata(path: Path) -> dict[str, Any]:
        metadata = peek_json(path / SETTINGS).get("about")
        return metadata if isinstance(metadata, dict) else {}
