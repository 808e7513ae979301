"""Settings: read them from YAML, override, validate and keep them.

- `plain_yaml` makes plain values only, and few of them, whatever aliases, merges and tags a stranger's text holds.
- `read_yaml` applies `key.path=value` overrides; `validate` says in one sentence what does not fit.
- `SettingsFile` keeps settings in a file that the user may edit; a sealed copy beside it tells an edit from damage.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import (
    check_readable,
    in_words,
    make_folder,
    read_sealed,
    sha256_of,
    write_sealed,
    write_text,
)


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def section_for(cls, raw: Any) -> type["Section"]:
        """The class that validates `raw`: this one, or one of several where a key says which."""
        return cls


ADDED = "added later"


def added(default: Any, **options: Any) -> Any:
    """A pydantic `Field` that runs of earlier versions did not have; its default is what they did."""
    return Field(default=default, json_schema_extra={ADDED: True}, **options)


def identity(section: BaseModel) -> dict[str, Any]:
    """Plain values that say what depends on a section: its dump without `added` fields that have their default.

    So a finished stage of an earlier version keeps its fingerprint.
    """
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, extra = getattr(section, name), field.json_schema_extra
        if isinstance(extra, dict) and extra.get(ADDED) and value == field.default:
            del values[name]
        elif isinstance(value, BaseModel):
            values[name] = identity(value)
    return values


LARGEST = 1 << 20
"""Most characters of a text."""
MOST, DEEPEST = 100_000, 100
"""Most values in it, counted with aliases expanded, and their deepest nesting."""


def plain_yaml(text: str) -> Any:
    """The plain values in a YAML text; no other objects are ever created from it.

    Raises:
        ValueError: it is not valid YAML, a value does not fit its tag, or it is too large: a few hundred characters of
            aliases can expand to billions of values.
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
                raise ValueError(f"it expands to more than {MOST:,} values")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is too deeply nested") from None
    except (yaml.YAMLError, AttributeError, IndexError, KeyError, TypeError, OverflowError) as error:
        # PyYAML raises unrelated errors for values such as a date in the 99th month or an integer without digits.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    """Counts opening brackets, because PyYAML's scanner takes seconds over deeply nested text before it fails."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        super().fetch_flow_collection_start(TokenClass)


def _weight(node: yaml.Node, known: dict[yaml.Node, int], depth: int) -> int:
    """Number of values in `node` once its aliases are expanded; -1 in `known` marks a node that is being counted."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if node not in known:
        if isinstance(node, yaml.ScalarNode) and any("\ud800" <= letter <= "\udfff" for letter in node.value):
            raise ValueError("it contains half a character, which no file can hold")
        known[node] = -1
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[node] = 1 + sum(_weight(part, known, depth + 1) for part in parts)
    if known[node] < 0:
        raise ValueError("a part of it contains itself")
    return known[node]


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in `path`, with overrides such as `sae.k=8` applied.

    Raises:
        CocomixError: a missing, malformed or cut file, or an override that does not fit.
    """
    check_readable(Path(path))
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        raw = plain_yaml(text)
    except FileNotFoundError:
        raise CocomixError(f"there is no config file {path}; give an existing one") from None
    except (OSError, ValueError) as error:
        raise CocomixError(f"{path} cannot be read as YAML ({error}); fix or replace it") from error
    _check_complete(Path(path), text, raw)
    if not isinstance(raw, dict):
        raise CocomixError(f"{path} holds no mapping of sections; start from one of the files in recipes/")
    return override(raw, overrides)


def override(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with overrides such as `sae.k=8` applied.

    Raises:
        CocomixError: one does not fit.
    """
    raw = _unshared(raw)
    for text in overrides:
        _apply(raw, text)
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
        raise CocomixError(
            f"{origin}: it contains half a character, {error.object[error.start]!r}; remove it"
        ) from error


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
    """The first problem as one sentence, with the closest known key for an unknown one."""
    first = error.errors(include_url=False)[0]
    inside = first["loc"][:-1] if first["type"] in {"extra_forbidden", "missing"} else first["loc"]
    path, known = _walk(kind, inside, raw)
    if first["type"] in {"extra_forbidden", "missing"}:
        path.append(str(first["loc"][-1]))
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys there: {', '.join(known)}"
        return f"the key {key!r} does not exist; {hint}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict | BaseModel) else f" (got {first['input']!r})"
    return f"{key}: {message}{got}" if key else f"{message}{got}"


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


# --- settings that we write and the user edits ---

LEGACY_SEAL = "# sha256 of the lines below: "
"""First line of the files that earlier versions wrote, which had no copy beside them."""
SHOWN_CHANGES = 6


class SettingsFile:
    """A YAML file of settings that the user may edit, and a sealed copy of what we last wrote, `.NAME.json` beside it.

    The copy tells an edit from damage: other values and new keys are an edit, missing keys are a cut file (which is
    still YAML, and whose defaults would be other settings). `read_yaml` refuses the latter.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.copy = path, copy_path(path)
        self._text = self._current()

    def write(self, settings: dict[str, Any]) -> None:
        """Keep `settings`, plain values with every key.

        The user's file stays as it is, comments included, where it holds these settings already, or where it was edited
        since this object was made; the edit then counts for the next command.
        """
        lock = self.path.parent / ".locks" / f"{self.path.name}.lock"
        make_folder(lock.parent)
        with FileLock(lock, fallback_to_soft=False):  # stages of one run may end at the same time
            self._write(settings)

    def _write(self, settings: dict[str, Any]) -> None:
        text = self._current()
        try:
            same = text is not None and not text.startswith(LEGACY_SEAL) and _same(plain_yaml(text), settings)
        except ValueError:
            same = False
        if text == self._text and not same:
            # Killed between the two writes, the new file must not be held against the old copy.
            self.copy.unlink(missing_ok=True)
            self._text = yaml.safe_dump(settings, sort_keys=False)
            write_text(self.path, self._text, durable=True)
        if not self._is_copied(settings):
            write_sealed(self.copy, {"settings": settings}, durable=True)

    def _is_copied(self, settings: dict[str, Any]) -> bool:
        try:
            return read_sealed(self.copy)["settings"] == json.loads(json.dumps(settings))
        except (OSError, ValueError, KeyError):
            return False

    def _current(self) -> str | None:
        try:
            return self.path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError):
            return None


def copy_path(path: Path) -> Path:
    """The sealed copy of a settings file, e.g. `.config.json` of `config.yaml`."""
    return path.with_name(f".{path.stem}.json")


def last_written(path: Path) -> dict[str, Any] | None:
    """The settings that `SettingsFile` last wrote to `path`; None where there is no copy of them.

    Raises:
        CocomixError: the copy is damaged.
    """
    copy = copy_path(path)
    try:
        settings = read_sealed(copy)["settings"]
        if not isinstance(settings, dict):
            raise ValueError("it holds no settings")
        return settings
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, PermissionError):
            raise CocomixError(in_words(error)) from error
        raise CocomixError(
            f"{copy} is damaged ({error}); check that {path.name} holds the settings you mean, then delete {copy}"
        ) from error


def changes(before: Any, after: Any, path: str = "") -> list[str]:
    """What differs between two plain mappings, key by key, e.g. `sae.k 16 -> 8`."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [f"{path} {_shown(before)} -> {_shown(after)}"]
    differences = []
    for key in dict.fromkeys((*before, *after)):
        inside = f"{path}.{key}" if path else str(key)
        if key not in before:
            differences.append(f"{inside} added")
        elif key not in after:
            differences.append(f"{inside} removed")
        else:
            differences += changes(before[key], after[key], inside)
    return differences


def listed(items: Sequence[str], most: int = SHOWN_CHANGES) -> str:
    """The first `most` items, and how many more there are."""
    more = [f"{len(items) - most} more"] if len(items) > most else []
    return ", ".join([*items[:most], *more])


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) and value.isprintable() and value else text


def _check_complete(path: Path, text: str, raw: Any) -> None:
    """Refuse a file that lost a part of what we wrote: a cut file is still YAML.

    Raises:
        CocomixError: keys are missing, the sealed copy is damaged, or a file of an earlier version was changed.
    """
    before = last_written(path)
    if before is None:
        first, _, rest = text.partition("\n")
        if first.startswith(LEGACY_SEAL) and first.removeprefix(LEGACY_SEAL)[:64] != sha256_of(rest):
            raise CocomixError(
                f"{path} was changed since an earlier version of cocomix wrote it; to keep the change, delete its first"
                " line (a checksum), else restore the file or give the settings again with --config"
            )
        return
    missing = _missing(before, raw)
    if missing:
        raise CocomixError(
            f"{path} has lost {listed(missing)}; put it back, or delete {copy_path(path)} if it was removed on purpose"
        )


def _missing(before: dict[str, Any], raw: Any, path: str = "") -> list[str]:
    """Keys that are gone, outermost first; a mapping that was replaced by a plain value counts as gone."""
    if not isinstance(raw, dict):
        return [path] if path else sorted(before)
    gone = []
    for key, value in before.items():
        inside = f"{path}.{key}" if path else str(key)
        if key not in raw:
            gone.append(inside)
        elif isinstance(value, dict) and value:
            gone += _missing(value, raw[key], inside)
    return gone


def _same(raw: Any, settings: Any) -> bool:
    """Whether plain values of a user's file are these settings, key by key; YAML takes `1e-3` for text."""
    if isinstance(settings, dict):
        return isinstance(raw, dict) and raw.keys() == settings.keys() and all(_same(raw[k], settings[k]) for k in raw)
    if isinstance(settings, list):
        return isinstance(raw, list) and len(raw) == len(settings) and all(map(_same, raw, settings))
    if isinstance(raw, str) and isinstance(settings, int | float):
        try:
            return float(raw) == settings
        except ValueError:
            return False
    return raw == settings
