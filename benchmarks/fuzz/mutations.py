"""Mutants of a valid file: random changes of its bytes, and changes of the values its bytes encode.

Everything is drawn from one `random.Random`, so the same number makes the same input again.
"""

import ast
import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks.fuzz.hostile_values import JSON, MARK, VALUES, YAML, dumped, slots

Bytes = Callable[[bytes, Random], bytes]
EDGES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
MAX_CHANGES = 3


def _place(content: bytes, rng: Random) -> int:
    """Draw a position; the first bytes are favoured because they hold headers."""
    return rng.randrange(min(len(content), 64) if rng.random() < 0.4 else len(content)) if content else 0


def _span(content: bytes, rng: Random) -> tuple[int, int]:
    begin = _place(content, rng)
    return begin, min(len(content), begin + rng.choice((1, 2, 8, 64, 512, len(content))))


def _flip(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 32)) if content else 0):
        changed[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: Random) -> bytes:
    return content[: _place(content, rng)]


def _remove(content: bytes, rng: Random) -> bytes:
    begin, end = _span(content, rng)
    return content[:begin] + content[end:]


def _insert(content: bytes, rng: Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 8, 100))) + content[at:]


def _double(content: bytes, rng: Random) -> bytes:
    begin, end = _span(content, rng)
    return content[:end] + content[begin:end] * rng.choice((1, 1, 2, 50)) + content[end:]


def _same(content: bytes, rng: Random) -> bytes:
    begin, end = _span(content, rng)
    return content[:begin] + rng.choice((b"\x00", b"\xff", b"[", b"9", b"\n")) * (end - begin) + content[end:]


def _integer(content: bytes, rng: Random) -> bytes:
    at, size, order = _place(content, rng), rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    edge = rng.choice(EDGES) & ((1 << 8 * size) - 1)
    return content[:at] + edge.to_bytes(size, order) + content[at + size :]  # pyright: ignore[reportArgumentType]


def _swap(content: bytes, rng: Random) -> bytes:
    (first, second), (third, fourth) = sorted((_span(content, rng), _span(content, rng)))
    second = min(second, third)
    return content[:first] + content[third:fourth] + content[second:third] + content[first:second] + content[fourth:]


def _append(content: bytes, rng: Random) -> bytes:
    return content + rng.choice((rng.randbytes(20), content, b"\x00" * 4096, b"]}", b"\n"))


BYTES: tuple[Bytes, ...] = (_flip, _flip, _cut, _remove, _insert, _double, _same, _integer, _integer, _swap, _append)


def _replacement(old: Any, rng: Random, raw: list[str], texts: tuple[str, ...], outside: Path) -> Any:
    """Draw a hostile replacement for the value `old`."""
    if isinstance(old, str) and rng.random() < 0.3:
        return rng.choice(
            (f"../{outside.name}/{old}", f"{outside}/{old}", f"./{old}", f"{old}/../{old}", old * 2, old[1:])
        )
    if isinstance(old, int) and rng.random() < 0.4:
        return rng.choice(
            (old + 1, old - 1, -old, old * 2, old << 20, old << 40, old << 70, float(old), str(old), [old])
        )
    if rng.random() < 0.4:
        raw.append(rng.choice(texts))
        return f"{MARK}{len(raw) - 1}"
    return deepcopy(rng.choice(VALUES))


def change_tree(tree: Any, rng: Random, texts: tuple[str, ...], outside: Path) -> bytes:
    """Return `tree` as JSON with a few values replaced, removed, renamed or duplicated; modifies `tree`."""
    raw: list[str] = []
    for _ in range(rng.randint(1, MAX_CHANGES)):
        places = list(slots(tree))
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.7:
            holder[key] = _replacement(holder[key], rng, raw, texts, outside)
        elif kind < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            new = rng.choice(("", "x", "../x", key.upper(), f"{key} ", "\ud800", "__init__", "9" * 5000, "-1"))
            holder[new] = holder.pop(key) if kind < 0.9 else deepcopy(holder[key])
        else:
            holder.insert(key, deepcopy(rng.choice(holder)))
    return dumped(tree, raw)


def _json(content: bytes, rng: Random, outside: Path) -> bytes:
    return change_tree(json.loads(content), rng, JSON, outside)


def _lines(content: bytes, rng: Random, outside: Path) -> bytes:
    lines = content.splitlines()
    which = rng.randrange(len(lines))
    lines[which] = _json(lines[which], rng, outside)
    return b"\n".join(lines) + b"\n"


def _yaml(content: bytes, rng: Random, outside: Path) -> bytes:
    return change_tree(yaml.safe_load(content), rng, YAML + JSON, outside)


def _safetensors(content: bytes, rng: Random, outside: Path) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + size], rng, outside)
    stated = rng.choice(EDGES) if rng.random() < 0.1 else len(header)
    return stated.to_bytes(8, "little") + header + content[8 + size :]


def _npy(content: bytes, rng: Random, outside: Path) -> bytes:
    size = int.from_bytes(content[8:10], "little")
    header = ast.literal_eval(content[10 : 10 + size].decode("latin-1"))
    kind = rng.choice(("descr", "shape", "fortran_order"))
    odd = {
        "descr": ("|O", "<i4", "<f8", "|V0", "<U99999", "x", [("a", "<i8")], "<i8,<i8", "|S0", ">i8", 3),
        "shape": ((1 << 62,), (-1,), (0,), (2, 3), (1 << 70,), ("x",), (1 << 32, 1 << 32), [3], None, (True,), ()),
        "fortran_order": (True, 1, None, "x"),
    }
    text = repr(header | {kind: rng.choice(odd[kind])}).encode("latin-1")
    text = rng.choice((text, text + b" ", b"__import__('os').system('touch ../outside/ran')", b"[" * 500)) + b"\n"
    return content[:8] + len(text).to_bytes(2, "little") + text + content[10 + size :]


STRUCTURED: dict[str, Callable[[bytes, Random, Path], bytes]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".npy": _npy,
}
"""Mutations that keep the file format, by suffix; in other files only bytes are changed."""


def mutated(name: str, content: bytes, rng: Random, outside: Path) -> bytes:
    """Return a mutant of a file's `content`; the suffix of `name` tells its format."""
    structured = STRUCTURED.get(Path(name).suffix)
    if structured is not None and content and rng.random() < 0.65:
        return structured(content, rng, outside)
    for _ in range(rng.randint(1, MAX_CHANGES)):
        content = rng.choice(BYTES)(content, rng)
    return content


def _gone(path: Path, _outside: Path) -> None:
    path.unlink()


def _folder(path: Path, _outside: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path, _outside: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _dangling(path: Path, _outside: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _linked(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside / path.name)


def _twin(path: Path, _outside: Path) -> None:
    shutil.copyfile(path, path.with_name(f"{path.name}.{os.getpid()}.tmp"))


PATH_CHANGES: dict[str, Callable[[Path, Path], None]] = {
    "is missing": _gone,
    "is a folder": _folder,
    "is a link to itself": _loop,
    "is a link to nothing": _dangling,
    "is a link out of the folder": _linked,
    "has a half-written twin": _twin,
}
"""Ways to damage a file other than changing its bytes."""
