"""`cocomix name`: names of a run's concepts, from its training text.

Names belong to the autoencoder, so all students that learn its concepts share them. The training split is read: the
names say what the concepts were when they were taught, and held-out text stays unseen.
"""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from cocomix.analysis.llm import name_with
from cocomix.analysis.naming import name_concepts
from cocomix.analysis.occurrences import observe
from cocomix.analysis.record import FoundNames, Names, edit_name, read_names, write_found
from cocomix.pipeline.trained import existing_run
from cocomix.utils.console import StageProgress
from cocomix.utils.errors import CocomixError
from cocomix.utils.pipeline_console import console, errors

SPLIT = "train"
SHOWN = 12
"""Names shown at the end."""


def name_run(folder: Path, *, tokens: int, llm: str | None = None, llm_seconds: float = 30.0) -> Names:
    """Find names from about `tokens` tokens and keep them in the run.

    Args:
        llm: a program that reads passages and prints a name; see `cocomix.analysis.llm`.
        llm_seconds: its time for each concept.

    Raises:
        CocomixError: no run, or one whose autoencoder is not finished.
    """
    run = existing_run(folder)
    sae, teacher, shards = run.sae.model(), run.teacher.model(), run.tokens.shards(SPLIT)
    tokenizer, seq_len = run.tokens.tokenizer(), run.config.seq_len
    checksum = run.sae.checksum()
    with StageProgress(console, "names") as progress:
        seen = observe(
            teacher, sae, shards, layer=run.config.sae.layer, seq_len=seq_len, tokens=tokens, progress=progress
        )
        concepts = name_concepts(seen, lambda ids: str(tokenizer.decode(list(ids))), shards, seq_len)
    if llm is not None:
        with StageProgress(console, "names by the program") as progress:
            concepts, problems = name_with(llm, concepts, seconds=llm_seconds, progress=progress)
        for problem in problems:
            errors.print(f"cocomix: {problem}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    found = FoundNames(
        sae=checksum,
        tokens=shards.fingerprint,
        split=SPLIT,
        windows=seen.windows,
        positions=seen.positions,
        concepts=concepts,
    )
    write_found(folder, found)
    return read_names(folder, checksum)


def edit_run(folder: Path, edits: list[str]) -> Names:
    """Take names from people, each as CONCEPT=NAME; an empty name takes an edit back.

    Raises:
        CocomixError: not of that form, no such concept, or no run with a finished autoencoder.
    """
    run = existing_run(folder)
    n_concepts, checksum = int(run.sae.figures["n_latents"]), run.sae.checksum()
    read = []
    for edit in edits:
        concept, equals, name = edit.partition("=")
        if not equals or not concept.strip().isdecimal() or int(concept) >= n_concepts:
            raise CocomixError(f"--edit {edit} is not CONCEPT=NAME with a concept from 0 to {n_concepts - 1}")
        read.append((int(concept), name))
    for concept, name in read:
        edit_name(folder, checksum, concept, name)
    return read_names(folder, checksum)


def print_names(names: Names) -> None:
    """Names by hand and those that cover most of their concept; how many there are, and why others have none."""
    found = names.found
    if found is None:
        console.print("no names found yet; run `cocomix name`", highlight=False)
        return
    all_names = [names.of(concept) for concept in range(len(found.concepts))]
    named = [one for one in all_names if one.name is not None]
    named.sort(key=lambda one: (not one.edited, -(one.coverage or 0)))
    silent = sum(not one.occurrences and one.name is None for one in all_names)
    rare = sum(one.stability is None and one.name is None for one in all_names) - silent
    unstable = len(all_names) - len(named) - silent - rare
    edited = sum(one.edited for one in named)
    table = Table(box=None, pad_edge=False)
    table.add_column("concept", justify="right")
    table.add_column("name")
    table.add_column("share", justify="right")
    table.add_column("covers", justify="right")
    table.add_column("stability", justify="right")
    for one in named[:SHOWN]:
        stability = "–" if one.stability is None else f"{one.stability:.2f}"
        covers = "–" if one.coverage is None else f"{one.coverage:.0%}"
        name = (one.name or "") + (" (edited)" if one.edited else "")
        table.add_row(str(one.concept), Text(name), f"{one.share:.2%}", covers, stability)
    console.print(table)
    console.print(
        f"{len(named)} of {len(all_names)} concepts have a name ({edited} edited), {unstable} are unstable, {rare} too"
        f" rare, {silent} never active; from {found.positions:,} tokens of the {found.split} split. share: of"
        " positions; covers: of those, the share at which a token of the name is",
        highlight=False,
        soft_wrap=True,
    )
