"""A run's autoencoder in the files of another library."""

from pathlib import Path

from cocomix.pipeline.run import Run
from cocomix.sae.formats import FORMATS
from cocomix.utils.errors import CocomixError


def export_sae(run: Run, name: str, folder: Path) -> Path:
    """Write the run's finished autoencoder to `folder` in the format `name`, a key of `FORMATS`; returns `folder`.

    Raises:
        CocomixError: no such format, one that cannot represent this autoencoder, or a folder in use.
    """
    if name not in FORMATS:
        raise CocomixError(f"there is no SAE format {name!r}; choose one of {', '.join(FORMATS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CocomixError(f"{folder} holds something already; give a new folder")
    teacher = run.config.teacher.pretrained
    about = {"layer": run.sae.config.layer, "model": teacher or f"{run.config.title} (trained by cocomix)"}
    FORMATS[name].write(run.sae.model().cpu(), folder, about)
    return folder
