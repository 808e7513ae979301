"""Mutants of a valid file: bytes changed at random, and values changed in what its bytes say.

Everything is drawn from one `random.Random`, so a number makes the same input again.
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
MOST_CHANGES = 3


def _place(content: bytes, draw: Random) -> int:
    """Any place, the first few bytes more often: headers are there."""
    return draw.randrange(min(len(content), 64) if draw.random() < 0.4 else len(content)) if content else 0


def _span(content: bytes, draw: Random) -> tuple[int, int]:
    begin = _place(content, draw)
    return begin, min(len(content), begin + draw.choice((1, 2, 8, 64, 512, len(content))))


def _flip(content: bytes, draw: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8, 32)) if content else 0):
        changed[_place(content, draw)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: Random) -> bytes:
    return content[: _place(content, draw)]


def _remove(content: bytes, draw: Random) -> bytes:
    begin, end = _span(content, draw)
    return content[:begin] + content[end:]


def _insert(content: bytes, draw: Random) -> bytes:
    at = _place(content, draw)
    return content[:at] + draw.randbytes(draw.choice((1, 2, 8, 100))) + content[at:]


def _double(content: bytes, draw: Random) -> bytes:
    begin, end = _span(content, draw)
    return content[:end] + content[begin:end] * draw.choice((1, 1, 2, 50)) + content[end:]


def _same(content: bytes, draw: Random) -> bytes:
    begin, end = _span(content, draw)
    return content[:begin] + draw.choice((b"\x00", b"\xff", b"[", b"9", b"\n")) * (end - begin) + content[end:]


def _integer(content: bytes, draw: Random) -> bytes:
    at, size, order = _place(content, draw), draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    edge = draw.choice(EDGES) & ((1 << 8 * size) - 1)
    return content[:at] + edge.to_bytes(size, order) + content[at + size :]  # pyright: ignore[reportArgumentType]


def _swap(content: bytes, draw: Random) -> bytes:
    (first, second), (third, fourth) = sorted((_span(content, draw), _span(content, draw)))
    second = min(second, third)
    return content[:first] + content[third:fourth] + content[second:third] + content[first:second] + content[fourth:]


def _append(content: bytes, draw: Random) -> bytes:
    return content + draw.choice((draw.randbytes(20), content, b"\x00" * 4096, b"]}", b"\n"))


BYTES: tuple[Bytes, ...] = (_flip, _flip, _cut, _remove, _insert, _double, _same, _integer, _integer, _swap, _append)


def _odd(old: Any, draw: Random, raw: list[str], texts: tuple[str, ...], outside: Path) -> Any:
    """Something else in the place of `old`."""
    if isinstance(old, str) and draw.random() < 0.3:
        return draw.choice(
            (f"../{outside.name}/{old}", f"{outside}/{old}", f"./{old}", f"{old}/../{old}", old * 2, old[1:])
        )
    if isinstance(old, int) and draw.random() < 0.4:
        return draw.choice(
            (old + 1, old - 1, -old, old * 2, old << 20, old << 40, old << 70, float(old), str(old), [old])
        )
    if draw.random() < 0.4:
        raw.append(draw.choice(texts))
        return f"{MARK}{len(raw) - 1}"
    return deepcopy(draw.choice(VALUES))


def tree_changed(tree: Any, draw: Random, texts: tuple[str, ...], outside: Path) -> bytes:
    """JSON of `tree` with a few of its values replaced, removed, renamed, doubled or swapped; `tree` is changed."""
    raw: list[str] = []
    for _ in range(draw.randint(1, MOST_CHANGES)):
        places = list(slots(tree))
        if not places:
            break
        holder, key = draw.choice(places)
        kind = draw.random()
        if kind < 0.7:
            holder[key] = _odd(holder[key], draw, raw, texts, outside)
        elif kind < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            new = draw.choice(("", "x", "../x", key.upper(), f"{key} ", "\ud800", "__init__", "9" * 5000, "-1"))
            holder[new] = holder.pop(key) if kind < 0.9 else deepcopy(holder[key])
        else:
            holder.insert(key, deepcopy(draw.choice(holder)))
    return dumped(tree, raw)


def _json(content: bytes, draw: Random, outside: Path) -> bytes:
    return tree_changed(json.loads(content), draw, JSON, outside)


def _lines(content: bytes, draw: Random, outside: Path) -> bytes:
    lines = content.splitlines()
    which = draw.randrange(len(lines))
    lines[which] = _json(lines[which], draw, outside)
    return b"\n".join(lines) + b"\n"


def _yaml(content: bytes, draw: Random, outside: Path) -> bytes:
    return tree_changed(yaml.safe_load(content), draw, YAML + JSON, outside)


def _safetensors(content: bytes, draw: Random, outside: Path) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + size], draw, outside)
    stated = draw.choice(EDGES) if draw.random() < 0.1 else len(header)
    return stated.to_bytes(8, "little") + header + content[8 + size :]


def _npy(content: bytes, draw: Random, outside: Path) -> bytes:
    size = int.from_bytes(content[8:10], "little")
    header = ast.literal_eval(content[10 : 10 + size].decode("latin-1"))
    kind = draw.choice(("descr", "shape", "fortran_order"))
    odd = {
        "descr": ("|O", "<i4", "<f8", "|V0", "<U99999", "x", [("a", "<i8")], "<i8,<i8", "|S0", ">i8", 3),
        "shape": ((1 << 62,), (-1,), (0,), (2, 3), (1 << 70,), ("x",), (1 << 32, 1 << 32), [3], None, (True,), ()),
        "fortran_order": (True, 1, None, "x"),
    }
    text = repr(header | {kind: draw.choice(odd[kind])}).encode("latin-1")
    text = draw.choice((text, text + b" ", b"__import__('os').system('touch ../outside/ran')", b"[" * 500)) + b"\n"
    return content[:8] + len(text).to_bytes(2, "little") + text + content[10 + size :]


STRUCTURED: dict[str, Callable[[bytes, Random, Path], bytes]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".npy": _npy,
}
"""By file ending; any other file has its bytes changed only."""


def mutated(name: str, content: bytes, draw: Random, outside: Path) -> bytes:
    """A mutant of a file's `content`, by what its name says it is."""
    structured = STRUCTURED.get(Path(name).suffix)
    if structured is not None and content and draw.random() < 0.65:
        return structured(content, draw, outside)
    for _ in range(draw.randint(1, MOST_CHANGES)):
        content = draw.choice(BYTES)(content, draw)
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


PLACES: dict[str, Callable[[Path, Path], None]] = {
    "is missing": _gone,
    "is a folder": _folder,
    "is a link to itself": _loop,
    "is a link to nothing": _dangling,
    "is a link out of the folder": _linked,
    "has a half-written twin": _twin,
}
"""What else can be wrong with a file than its bytes."""
