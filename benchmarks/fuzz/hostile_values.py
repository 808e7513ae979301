"""Hostile values and file contents that do not occur in valid JSON and YAML files."""

import json
from collections.abc import Iterator
from typing import Any

MARK = "raw-text-here-"
"""Prefix of placeholders that are replaced by raw texts when the tree is written."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, 1e308, -1e-320, 1 << 31, 1 << 32, 1 << 63, 1 << 64, -(1 << 63), 10**30),
    *("", "x", "0", "1e999", "..", ".", "/", "../../x", "/etc/passwd", "~/x", "con", "a\nb", "\r\n", "\x1b[31mred"),
    *("\x00", "\u202e𝕏é\u0301", "\ud800", "x" * 100_000, "{{7*7}}", "%s%n", "None", "nan", "<script>", "c1=+1"),
    *([], {}, [[]], [None], [{}], {"": None}, [0] * 1000, {"x": {"x": {"x": {}}}}, ["x"] * 3, {"__class__": "x"}),
)

JSON: tuple[str, ...] = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-0", "-0.0", "9" * 5000, "1" + "0" * 400, "1e-400", '"\\ud800"'),
    *("[" * 100_000 + "]" * 100_000, "[" * 5000 + "]" * 5000, '{"a":' * 2000 + "1" + "}" * 2000, "[" * 900 + "]" * 900),
    *('{"a":1,"a":2}', '"\\u0000"', "tru", "'x'", "[1,]", "{}{}", "/*x*/1", "\ufeff1", "0x1F", "01", "+1", ".5"),
)
"""Raw texts in place of a JSON value; several are not valid JSON."""

BOMB = "[" + ",".join(f"&b{n} [" + ",".join([f"*b{n - 1}" if n else "x"] * 9) + "]" for n in range(12)) + "]"
"""9^12 values in less than a kilobyte."""
YAML: tuple[str, ...] = (
    *("!!python/object/apply:os.system ['touch ../outside/ran']", "!!python/name:os.system", "!!python/module:os"),
    *("!!python/object/new:subprocess.Popen [[touch, ../outside/ran]]", "!unknown x", "!!binary aGk=", "!!binary '%'"),
    *("&a [*a]", "&a {x: *a}", "&a {<<: *a}", "*nowhere", BOMB, "{<<: [1]}", "{<<: {x: 1}}", "{? [a, b] : c}"),
    *("2001-01-01", "2001-99-99", "2001-01-01 99:99:99", "!!timestamp x", "1:30:00", "0x", "0b2", "0o8", "!!int ''"),
    *("!!int x", "!!float x", "!!float ''", "!!bool x", "!!null x", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]"),
    *("!!str {a: 1}", "!!map []", "!!seq {}", ".nan", ".inf", "-.inf", "1_000", "yes", "no", "~", "=", "<<", "- - -"),
    *(
        "[" * 50_000,
        "[" * 3000 + "]" * 3000,
        "{a: " * 400 + "}" * 400,
        "9" * 5000,
        "1" + "0" * 400,
        "|",
        ">",
        "%",
        "@x",
    ),
    *("\t", "'", '"', "--- x", "... x", "\x07", "\x00", "\ufeffx", "? ", ": ", "&a", "!", "!!", "!<x> y", '"\\ud800"'),
)

FILE_CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "a line end": b"\n",
    "zeros": bytes(1000),
    "no UTF-8": b"\xff\xfe{}\x80",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a": 1}',
    "null": b"null",
    "a number": b"1",
    "a text": b'"x"',
    "a list": b"[1]",
    "an empty list": b"[]",
    "an empty object": b"{}",
    "an object of nothing known": b'{"x": null}',
    "not a number": b"NaN",
    "a number too large": b"1e999",
    "a number too long": b"9" * 100_000,
    "brackets without end": b"[" * 1_000_000,
    "braces without end": b'{"a":' * 200_000,
    "a document of brackets": b"[" * 100_000 + b"]" * 100_000,
    "a huge header": (1 << 62).to_bytes(8, "little") + b"{}",
    "a header of its own length": (8).to_bytes(8, "little") + b"{}      ",
    "a gzip": b"\x1f\x8b\x08\x00" + bytes(100),
    "a ZIP": b"PK\x03\x04" + bytes(100),
    "a pickle's start": b"\x80\x04\x95" + bytes(60),
    "YAML that shares": f"x: {BOMB}\n".encode(),
    "YAML that is in itself": b"x: &a [*a]\n",
    "YAML that calls": b"!!python/object/apply:os.system ['touch ../outside/ran']\n",
    "YAML of two documents": b"a: 1\n---\nb: 2\n",
}
"""Contents that replace any file, once each."""


def slots(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every pair (container, key or index) in `tree`, without recursion."""
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            yield node, key
            pending.append(node[key])


def dumped(tree: Any, raw: list[str]) -> bytes:
    """Return `tree` as JSON, with placeholders replaced by the raw texts."""
    text = json.dumps(tree)
    for number, raw_text in enumerate(raw):
        text = text.replace(f'"{MARK}{number}"', raw_text)
    return text.encode("utf-8", "surrogatepass")
