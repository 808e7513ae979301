"""`cocomix pack`: build, verify and show concept packs."""

import re
import secrets
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import Overrides, PathArgument, PathOption, quiet_libraries, recipe_file
from cocomix.utils.console import console, in_bytes
from cocomix.utils.errors import CocomixError

pack = typer.Typer(
    no_args_is_help=True,
    help="Concept packs: a pretrained autoencoder, names of its concepts and labels of whole corpora, in a folder.",
)
Source = Annotated[str, typer.Argument(metavar="PACK", help="Folder, name of one that comes with cocomix, or hub id.")]


@pack.command()
def build(
    recipe: Annotated[
        Path, PathArgument(help="YAML of a run, a run's folder, or name of a recipe in the package, e.g. smollm2.")
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, PathOption("--output", "-o", help="Folder of the pack; default: packs/NAME.")
    ] = None,
    run: Annotated[Path | None, PathOption("--run", "-r", help="The run it is made in; default: runs/NAME.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The pack's name; default: that of its folder.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="Licence of the concept model.")] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="What the corpus is called in the pack; default: as its source.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Block whose autoencoder and labels it holds; default: sae.layer.")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Labels of the first so many windows of each split only.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Label no more: take the windows that are labelled already.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the pack that is there.")] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Add the corpus to the pack that is there, of the same teacher and SAE.")
    ] = False,
) -> None:
    """Do the stages of a run that a pack needs, then write the pack.

    The run needs a published concept model with a tokenizer of its own. Finished stages are kept; rerun the same
    command to resume. The pack is written in one go, when all is done.
    """
    quiet_libraries()
    from cocomix.pipeline.config import CONFIG, load_config
    from cocomix.pipeline.pack_build import PackOptions, build_pack, needed_stages, pack_sources
    from cocomix.pipeline.run import Run

    settings = recipe if recipe.exists() or recipe.suffix else recipe_file(str(recipe))
    settings = settings / CONFIG if settings.is_dir() else settings
    called = name or (output.name if output else recipe.resolve().stem)
    check_name(called, "pack")
    check_name(corpus or "corpus", "corpus")
    folder = output or Path("packs") / called
    place = run or (recipe if recipe.is_dir() else Path("runs") / recipe.stem)
    opened = Run(place, load_config(settings, overrides or []))
    opened.advise([*([] if recipe.is_dir() else ["--config", str(settings)]), *(overrides or [])])
    opened.replace = False
    labelled = [] if not partial else pack_sources(opened, layer)
    for stage in needed_stages(opened, layer):
        if stage not in labelled:
            opened.do(stage, stage.name)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]  # packs get published
    command = shlex.join(["cocomix", *words])
    built = build_pack(
        opened,
        folder,
        PackOptions(called, licence, corpus, layer, windows, replace=replace, add=add, command=command),
    )
    show_pack(built)


@pack.command()
def verify(
    source: Source,
    overrides: Overrides = None,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the windows that is labelled again.")] = 0.01,
    seed: Annotated[int | None, typer.Option(help="Which windows; default: by chance.")] = None,
    run: Annotated[
        Path | None, PathOption("--run", "-r", help="Where text and tokens are kept; default: runs/verify-NAME.")
    ] = None,
) -> None:
    """Compare a pack with its checksums, its text and its concept model, and label a random share of it again.

    Says how many labels are the same, how many as good, and how many others; exit code 1 if these are too many. Needs
    the concept model. Overrides are for a corpus that is elsewhere, e.g. corpus.options.path=my/texts.
    """
    quiet_libraries()
    from cocomix.pipeline.pack import Pack, find_pack
    from cocomix.pipeline.pack_verify import SAYS, verify_pack

    name = Pack(find_pack(source)).about.name
    chosen = secrets.randbelow(1 << 31) if seed is None else seed
    found = verify_pack(
        source, share=share, seed=chosen, folder=run or Path("runs") / f"verify-{name}", overrides=overrides
    )
    for one in found:
        console.print(str(one), highlight=False, soft_wrap=True)
    console.print(f"{SAYS} Windows: {share:.1%}, --seed {chosen}.", highlight=False, soft_wrap=True)
    if not all(one.sound for one in found):
        console.print(f"The pack {name} is not what its concept model says.", style="red", soft_wrap=True)
        raise typer.Exit(1)


@pack.command()
def show(source: Source) -> None:
    """Print what is in a pack and how it was made; only its pack.json is read."""
    from cocomix.pipeline.pack import Pack, find_pack

    show_pack(Pack(find_pack(source)))


def show_pack(found: object) -> None:
    """Print what `pack.json` says."""
    from cocomix.pipeline.pack import Pack

    assert isinstance(found, Pack)
    about = found.about
    teacher, sae, rounding = about.teacher, about.sae, about.sae.rounding
    size = sum(entry["bytes"] for entry in about.files)
    lines = [
        f"{about.name}: {about.title} ({in_bytes(size)} in {found.folder})",
        f"teacher: {teacher.source}, {teacher.parameters:,} parameters, licence {teacher.licence or 'not stated'}",
        f"autoencoder: after block {sae.layer}, {sae.n_latents:,} concepts, {sae.k} active, explained variance"
        f" {sae.figures['explained_variance']:.4f}; names: {'yes' if about.names else 'no'}",
        f"rounded to {rounding.dtype}: explained variance {rounding.explained_variance_before:.5f} to"
        f" {rounding.explained_variance_after:.5f}, other active concepts at {rounding.active_changed_share:.2%} of"
        f" {rounding.positions:,} positions",
    ]
    for corpus in about.corpora:
        settings = {name: value for name, value in corpus.settings.items() if value}
        shares = ", ".join(f"{split} {one.covered_share:.1%}" for split, one in corpus.splits.items())
        lines.append(f"corpus {corpus.name}: {settings}; covered: {shares}")
        for labels in corpus.labels:
            bits = ", ".join(f"{split} {value:.1f}" for split, value in labels.bits.items())
            lines.append(
                f"  labels {labels.name}: {labels.rule}, {', '.join(labels.signs)}, {labels.k} a position; bits a"
                f" position: {bits}"
            )
    lines.append(f"made by: {about.lineage.get('command')}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def check_name(name: str, what: str) -> None:
    """Refuse a name that is no part of a path."""
    from cocomix.pipeline.pack import NAME

    if not re.fullmatch(NAME, name) or set(name) == {"."}:
        raise CocomixError(f"{name!r} is no name of a {what}; give letters, digits, '-', '_' and '.'")
