"""Read settings from YAML, apply `key.path=value` overrides, validate, and say in one sentence what is wrong."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import check_readable, sha256_of, write_text

# What all configuration sections share.


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def section_for(cls, raw: Any) -> type["Section"]:
        """The class that validates `raw`: this one, or one of several where a key says which."""
        return cls


# YAML as settings have it: plain values, few of them, whatever the text makes of aliases, merges and tags.

LARGEST = 1 << 20
"""Characters of a text."""
MOST, DEEPEST = 100_000, 100
"""Values in it, each counted as often as an alias repeats it, and how deep they may be nested."""


def plain_yaml(text: str) -> Any:
    """What `text` says; nothing but plain values is ever made from it.

    Raises:
        ValueError: it is no YAML, holds a value that is not what its tag or look says, or is too much: a few hundred
            characters of aliases can stand for billions of values.
    """
    if len(text) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _weight(node, {}, 0) > MOST:
                raise ValueError(f"it stands for more than {MOST:,} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is too deeply nested") from None
    except (yaml.YAMLError, AttributeError, IndexError, KeyError, TypeError, OverflowError) as error:
        # PyYAML meets a date of the 99th month, or an integer of no digits, with whatever error comes of it.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    """Counts brackets as they open: PyYAML looks a thousand ahead, in seconds, before anything is nested."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        super().fetch_flow_collection_start(TokenClass)


def _weight(node: yaml.Node, known: dict[yaml.Node, int], depth: int) -> int:
    """Values that `node` stands for once its aliases are written out; what is being weighed has no weight yet."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if node not in known:
        if isinstance(node, yaml.ScalarNode) and any("\ud800" <= one <= "\udfff" for one in node.value):
            raise ValueError("it holds half a character, which no file can hold")
        known[node] = -1
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for one in below for part in (one if isinstance(one, tuple) else (one,))]
        known[node] = 1 + sum(_weight(part, known, depth + 1) for part in parts)
    if known[node] < 0:
        raise ValueError("a part of it is inside itself")
    return known[node]


SEAL = "# sha256 of the lines below: "


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in `path`, with overrides such as `sae.k=8` applied.

    Raises:
        CocomixError: a missing or malformed file, or an override that does not fit.
    """
    check_readable(Path(path))
    try:
        text = Path(path).read_text(encoding="utf-8")
        _check_seal(text, path)
        raw = plain_yaml(text)
    except FileNotFoundError:
        raise CocomixError(f"there is no config file {path}; give an existing one") from None
    except (OSError, ValueError) as error:
        raise CocomixError(f"{path} cannot be read as YAML ({error}); mend or replace it") from error
    if not isinstance(raw, dict):
        raise CocomixError(f"{path} holds no mapping of sections; start from one of the files in recipes/")
    raw = _unshared(raw)
    for override in overrides:
        _apply(raw, override)
    return raw


Model = TypeVar("Model", bound=BaseModel)


def validate(kind: type[Model], raw: dict[str, Any], origin: str) -> Model:
    """Validate a plain mapping as `kind`.

    Raises:
        CocomixError: the first problem in one sentence; `origin` names the mapping.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise CocomixError(f"{origin}: {_explain(error, kind, raw)}") from error
    except UnicodeEncodeError as error:  # Pydantic's core is Rust, where a text is UTF-8
        raise CocomixError(f"{origin}: it holds half a character, {error.object[error.start]!r}; remove it") from error


def save_config(config: BaseModel, path: Path) -> None:
    """Write the resolved config as YAML, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text(path, f"{SEAL}{sha256_of(text)}; whoever edits this file deletes this line\n{text}")


def _check_seal(text: str, path: Path) -> None:
    """A flipped bit or a lost end would be other settings, and the stages made with the right ones would be replaced.

    Raises:
        CocomixError: the settings are not what cocomix wrote, and nobody has said that this is meant.
    """
    first, _, rest = text.partition("\n")
    if first.startswith(SEAL) and first.removeprefix(SEAL)[:64] != sha256_of(rest):
        raise CocomixError(
            f"{path} is not as cocomix wrote it; if you edited it, delete its first line, else restore it or give the"
            " settings again with --config"
        )


def merge(base: Any, over: Any) -> Any:
    """`base` with `over` on top, mapping by mapping; neither is changed, and the result shares nothing with them."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: merge(base.get(key), over.get(key, base.get(key))) for key in {**base, **over}}
    return _unshared(over)


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
        value = _unshared(plain_yaml(text))
    except ValueError as error:
        raise CocomixError(f"the value in {override!r} is not valid YAML ({error}); quote it") from None
    *parents, last = key.split(".")
    section = raw
    for part in parents:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise CocomixError(f"the override {override!r} goes below {part!r}, which is a plain value")
    section[last] = value


def _explain(error: ValidationError, kind: type[BaseModel], raw: Any) -> str:
    """The first problem as one sentence, with the nearest known key for an unknown one."""
    first = error.errors(include_url=False)[0]
    inside = first["loc"][:-1] if first["type"] in {"extra_forbidden", "missing"} else first["loc"]
    path, known = _walk(kind, inside, raw)
    if first["type"] in {"extra_forbidden", "missing"}:
        path.append(str(first["loc"][-1]))
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys there: {', '.join(known)}"
        return f"the key {where!r} does not exist; {hint}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict | BaseModel) else f" (got {first['input']!r})"
    return f"{where}: {message}{got}" if where else f"{message}{got}"


def _walk(kind: type[BaseModel], location: Sequence[int | str], raw: Any) -> tuple[list[str], list[str]]:
    """A place in `kind` as a user writes it, and the keys known there; `raw` says which class a part is of."""
    section: Any = kind
    path: list[str] = []
    for part in location:
        path.append(str(part))
        if isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields:
            section = _section_type(section.model_fields[part].annotation)
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            raw = None
        if isinstance(section, type) and issubclass(section, Section):
            section = section.section_for(raw)
    return path, sorted(section.model_fields) if isinstance(section, type) else []


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside `X`, `X | None` or `dict[str, X]`."""
    pending = [annotation]
    while pending:
        inner = pending.pop(0)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
        pending += get_args(inner)
    return None
