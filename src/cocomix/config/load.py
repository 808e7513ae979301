"""Read a run's YAML, apply `key.path=value` overrides, validate, and say in one sentence what is wrong."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cocomix.config.run import RunConfig
from cocomix.errors import CocomixError
from cocomix.files import write_text


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load `path` (YAML), apply overrides such as `sae.k=8`, and validate.

    Raises:
        CocomixError: a missing or malformed file, an unknown key, or a value that does not fit.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CocomixError(f"there is no config file {path}; give an existing one with --config") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CocomixError(f"{path} cannot be read as YAML ({_one_line(error)}); mend or replace it") from error
    if not isinstance(raw, dict):
        raise CocomixError(f"{path} holds no mapping of sections; start from one of the files in recipes/")
    raw = _unshared(raw)
    for override in overrides:
        _apply(raw, override)
    return validate_config(raw, str(path))


def validate_config(raw: dict[str, Any], origin: str) -> RunConfig:
    """Validate a plain mapping; `origin` names it in the error."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise CocomixError(f"{origin}: {_explain(error)}") from error


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config as YAML, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _unshared(value: Any) -> Any:
    """A copy in which no two places share a mapping, as YAML aliases do: an override changes the place it names."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise CocomixError(f"the override {override!r} is not of the form key.path=value, e.g. sae.k=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise CocomixError(f"the value in {override!r} is not valid YAML; quote it") from None
    *parents, last = key.split(".")
    section = raw
    for part in parents:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise CocomixError(f"the override {override!r} goes below {part!r}, which is a plain value")
    section[last] = value


def _explain(error: ValidationError) -> str:
    """The first problem as one sentence, with the nearest known key for an unknown one."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys there: {', '.join(known)}"
        return f"the key {where!r} does not exist; {hint}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict | BaseModel) else f" (got {first['input']!r})"
    return f"{where}: {message}{got}" if where else f"{message}{got}"


def _known_keys(location: Sequence[int | str]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        if isinstance(part, str) and isinstance(model, type) and part in model.model_fields:
            model = _section_type(model.model_fields[part].annotation)
    return sorted(model.model_fields) if isinstance(model, type) else []


def _section_type(annotation: Any) -> Any:
    """The pydantic model inside `X`, `X | None` or `dict[str, X]`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
