"""What the site has beyond the pages in this folder.

Generated: a page of all commands, from their own help, and one a public package, from its docstrings. Files of the
repository that a page links to come along, so that no link leads out of the site.
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

log = logging.getLogger("mkdocs.hooks.cocomix")  # below mkdocs' own, so that a warning ends a strict build
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "cocomix"
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
BESIDE = "repository"
"""folder of the site for what lies outside of docs/"""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and what pages link to outside of docs/."""
    files.append(File.generated(config, "reference/cli.md", content=commands()))
    packages = dict(public_packages())
    for name in packages:
        page = f"# cocomix.{name}\n\n::: cocomix.{name}\n"
        files.append(File.generated(config, f"reference/python/{name}.md", content=page))
    rows = "\n".join(f"| [cocomix.{name}]({name}.md) | {sentence} |" for name, sentence in packages.items())
    index = f"# Python\n\nWhat each package makes public.\n\n| package | |\n|---|---|\n{rows}\n"
    files.append(File.generated(config, "reference/python/index.md", content=index))
    config["nav"][-1]["Reference"] += [{f"cocomix.{name}": f"reference/python/{name}.md"} for name in packages]
    wanted = [inside for page in files.documentation_pages() for inside in _outside(page)]
    for inside in sorted(set(wanted)):
        if not (ROOT / inside).is_file():
            log.warning("a page links to %s, which is not in the repository", inside)
            continue
        place = f"{BESIDE}/{inside}" + (".txt" if inside.endswith(".md") else "")  # shown as it is, its links unused
        files.append(File.generated(config, place, content=(ROOT / inside).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links out of docs/ into links to the copies."""

    def inside(found: re.Match[str]) -> str:
        target = _target(page.file.src_uri, found[1])
        if target is None:
            return found[0]
        copy = f"{BESIDE}/{target}" + (".txt" if target.endswith(".md") else "")
        return f"]({posixpath.relpath(copy, posixpath.dirname(page.file.src_uri) or '.')})"

    return LINK.sub(inside, markdown)


def _outside(page: File) -> Iterator[str]:
    """Files of the repository outside of docs/ that a page links to."""
    for found in LINK.finditer(page.content_string):
        target = _target(page.src_uri, found[1])
        if target is not None:
            yield target


def _target(page: str, link: str) -> str | None:
    """The file a link of a page leads to, from the repository's root; None inside of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def commands() -> str:
    """All commands, as each explains itself."""
    from cocomix.cli.app import app

    group = typer.main.get_command(app)
    return get_docs_for_click(obj=group, ctx=typer.Context(group), name="cocomix", title="Commands")


def public_packages() -> Iterator[tuple[str, str]]:
    """Names of the packages that say what is public, and the first sentence of each."""
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = ast.get_docstring(tree)
        names = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
        if said and any(isinstance(name, ast.Name) and name.id == "__all__" for name in names):
            yield path.parent.name, said.split("\n\n")[0].replace("\n", " ")
