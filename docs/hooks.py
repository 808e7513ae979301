"""Hooks of mkdocs that add generated pages to the site.

The site gets a page of all commands, made from their own help, and one page per public package, made from its
docstrings. Files of the repository that a page links to are copied into the site, so that no link leads out of it.
"""

import ast
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

log = logging.getLogger("mkdocs.hooks.cocomix")  # a child of mkdocs' own logger, so that a warning fails a strict build
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cocomix"
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
COPIES = "repository"
"""folder of the site for copies of files outside docs/"""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and copies of the files outside docs/ that pages link to."""
    files.append(File.generated(config, "reference/cli.md", content=commands()))
    packages = dict(public_packages())
    for name in packages:
        page = f"# cocomix.{name}\n\n::: cocomix.{name}\n"
        files.append(File.generated(config, f"reference/python/{name}.md", content=page))
    rows = "\n".join(f"| [cocomix.{name}]({name}.md) | {sentence} |" for name, sentence in packages.items())
    index = f"# Python\n\nThe public names of each package.\n\n| package | |\n|---|---|\n{rows}\n"
    files.append(File.generated(config, "reference/python/index.md", content=index))
    config["nav"][-1]["Reference"] += [{f"cocomix.{name}": f"reference/python/{name}.md"} for name in packages]
    for target in sorted({target for page in files.documentation_pages() for target in _outside_links(page)}):
        if not (ROOT / target).is_file():
            log.warning("a page links to %s, which is not in the repository", target)
            continue
        files.append(File.generated(config, _copy(target), content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links out of docs/ by links to the copies."""

    def to_copy(link: re.Match[str]) -> str:
        target = _target(page.file.src_uri, link[1])
        if target is None:
            return link[0]
        return f"]({posixpath.relpath(_copy(target), posixpath.dirname(page.file.src_uri) or '.')})"

    return LINK.sub(to_copy, markdown)


def _copy(target: str) -> str:
    """Return the path in the site of the copy of a file of the repository; Markdown is shown as plain text."""
    return f"{COPIES}/{target}" + (".txt" if target.endswith(".md") else "")


def _outside_links(page: File) -> Iterator[str]:
    """Yield the files of the repository outside docs/ that a page links to."""
    for link in LINK.finditer(page.content_string):
        target = _target(page.src_uri, link[1])
        if target is not None:
            yield target


def _target(page: str, link: str) -> str | None:
    """Return the file that a page's link points to, relative to the repository's root; None inside docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def commands() -> str:
    """Return a Markdown page of all commands, from their help."""
    from cocomix.cli.app import app

    group = typer.main.get_command(app)
    return get_docs_for_click(obj=group, ctx=typer.Context(group), name="cocomix", title="Commands")


def public_packages() -> Iterator[tuple[str, str]]:
    """Yield the name and the first docstring paragraph of every package with `__all__`."""
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstring = ast.get_docstring(tree)
        targets = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
        if docstring and any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            yield path.parent.name, docstring.split("\n\n")[0].replace("\n", " ")
