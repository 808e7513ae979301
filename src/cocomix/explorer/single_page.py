"""One HTML file from the explorer's page: its modules linked into one script, its styles and the data in the file.

Browsers load no module from a file, so the modules are linked: each becomes a function that returns what it exports,
in an order in which a module comes after those it imports. The forms of `import` and `export` that the page uses are
known; another one is an error here, not in the browser. The page's content security policy names its script and style
by their checksums and forbids everything else, so it can ask nothing of anybody.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

PAGE = Path(__file__).parent / "page"
STYLES = ("style.css", "parts.css", "views.css")
_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w.]+)";\n', re.M)
_EXPORT = re.compile(r"^export ((?:async )?(?:function\*? |class |const )(\w+))", re.M)
_OTHER = re.compile(r"^(?:import|export)\b.*", re.M)


def dashboard_page(dashboards: list[dict[str, Any]], *, student: str, rule: str) -> str:
    """The page with some dashboards, `Dashboard`s as JSON, in their order; at least one.

    Args:
        student: whose they are, in words.
        rule: how they were chosen, a sentence.
    """
    title = f"Concepts of {student}"
    script, theme = linked("exported.js"), _text("theme.js")
    style = "\n".join(_text(name) for name in STYLES)
    data = json.dumps({"about": {"title": title, "rule": rule}, "dashboards": dashboards}, separators=(",", ":"))
    policy = (
        f"default-src 'none'; script-src {_source(theme)} {_source(script)}; style-src {_source(style)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": html.escape(policy),
        "title": html.escape(title),
        "student": html.escape(student),
        "icon": f"data:image/svg+xml,{quote(_text('favicon.svg'))}",
        "style": style,
        "theme": theme,
        "data": data.replace("<", "\\u003c"),  # no end of the element, and no comment
        "script": script,
    }
    return re.sub(r"@(\w+)@", lambda match: parts[match[1]], _text("exported.html"))


def linked(entry: str) -> str:
    """The module `entry` of the page and all it imports, as one script."""
    order: list[str] = []
    _visit(entry, order, ())
    return "".join(_wrapped(name) for name in order)


def _visit(name: str, order: list[str], importers: tuple[str, ...]) -> None:
    assert name not in importers, f"{name} imports itself by way of {importers}"
    for imported in (match[2] for match in _IMPORT.finditer(_text(name))):
        if imported not in order:
            _visit(imported, order, (*importers, name))
    order.append(name)


def _wrapped(name: str) -> str:
    """A module as a constant that holds what it exports."""
    text = _text(name)
    exported = [match[2] for match in _EXPORT.finditer(text)]
    body = _IMPORT.sub(lambda match: f"const {{{match[1].replace(' as ', ': ')}}} = {_variable(match[2])};\n", text)
    body = _EXPORT.sub(r"\1", body)
    other = _OTHER.search(body)
    assert other is None, f"{name}: {other and other[0]}"
    assert "</script" not in body, name
    return f"const {_variable(name)} = (() => {{\n{body}return {{ {', '.join(exported)} }};\n}})();\n"


def _variable(name: str) -> str:
    return f"module_{re.sub(r'[^A-Za-z0-9]', '_', name.removesuffix('.js'))}"


def _source(content: str) -> str:
    """The content security policy's word for a script or style with exactly this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")
