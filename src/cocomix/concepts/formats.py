"""Deprecated: these names are in `cocomix.sae`; kept for one version. The parent package gives the warning."""

from cocomix.sae import FORMATS, LoadedSae, SaeFormat, load_sae

__all__ = ["FORMATS", "LoadedSae", "SaeFormat", "load_sae"]
