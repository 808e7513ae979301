"""What an explorer needs of a run beside its models: names and atlases, made where they are missing and kept there."""

from cocomix.analysis.record import read_names
from cocomix.explorer.catalog import Catalog
from cocomix.pipeline.concept_stages import name_run
from cocomix.utils.errors import CocomixError
from cocomix.utils.pipeline_console import console

NAME_TOKENS = 250_000
"""Of the training split, as `cocomix name` reads."""


def prepare(catalog: Catalog, *, name_tokens: int = NAME_TOKENS) -> None:
    """Name the concepts of every run, look through every finished student, and load what the first question needs.

    What cannot be made is said, and does without: a run may lack its teacher.
    """
    for run in catalog.runs:
        if run.has_sae and read_names(run.folder, run.run.sae.checksum()).found is None:
            name_run(run.folder, tokens=name_tokens)
        if run.has_sae:
            run.load()
    for info in reversed(catalog.models()):
        if info.predicts and catalog.entry(info.key).whole:
            try:
                opened = catalog.open(info.key)
                opened.look()
                for text in catalog.examples[:1]:  # the first passes of a process are slow
                    opened.read(text, concept=None, top=1)
            except CocomixError as error:
                console.print(f"{info.label}: {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)
