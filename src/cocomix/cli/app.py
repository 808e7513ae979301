"""The command line: one command a stage, and `cocomix demo` for all of them.

Every problem a user can fix ends in one sentence on standard error and exit code 2. Features are imported inside the
commands, because they load torch, so that `--help` stays fast.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.concepts import explore, inspect_command, name_command
from cocomix.cli.evaluate import certificate, evaluate, perplexity, steer_eval_command
from cocomix.cli.options import (
    DEFAULT_RUN,
    ConfigFile,
    Overrides,
    PathArgument,
    PathOption,
    Replace,
    RunDir,
    Seeds,
    check_text,
    demo_recipe,
    open_run,
    quiet_libraries,
    recipe_file,
)
from cocomix.cli.packs import pack
from cocomix.cli.retrofit import retrofit
from cocomix.cli.runs import clean
from cocomix.cli.sharing import doctor, export, export_dashboards, push
from cocomix.utils.advice import explore_line
from cocomix.utils.console import console, errors, is_main, use_any_encoding, wait_for_main_to_report, world_size
from cocomix.utils.errors import CocomixError, Interrupted
from cocomix.utils.files import in_words

app = typer.Typer(
    name="cocomix",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Pretrain language models with continuous concepts, stage by stage.

A run is a folder. The first command writes its config.yaml, which lists every setting, and later commands read it. You
can edit it, or override any setting as KEY.PATH=VALUE after the options, e.g. sae.k=8. Finished stages are kept; a
changed setting redoes the stages that depend on it, and what they replace is back when its settings are. To read input
files again whose content changed, delete the stage's folder in the run.""",
)


@app.command()
def demo(
    overrides: Overrides = None,
    run: RunDir = DEFAULT_RUN,
    config: ConfigFile = None,
    seeds: Seeds = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="All stages in under two minutes; the figures are meaningless.")
    ] = False,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Also make the teacher, the autoencoder and the labels, without a pack."),
    ] = False,
    replace: Replace = False,
) -> None:
    """Run every stage on real text and compare the students.

    The corpus, the US presidents' annual addresses from 1790 to 2026, is part of the installation. Where there is a
    concept pack for it, teacher, autoencoder and labels come from there; --from-scratch makes them, too. Takes about 20
    minutes on 2 CPU cores. You can stop it at any time; rerun the same command to resume.
    """
    if tiny and from_scratch:
        raise CocomixError("--tiny makes everything from scratch already; leave --from-scratch out")
    own = "tiny" if tiny else "demo" if from_scratch else None
    if own is not None and config is None:
        config = recipe_file(own)
        other = Path("runs/tiny") if tiny else Path("runs/demo-from-scratch")
        run = other if run == DEFAULT_RUN else run
    default = demo_recipe() if config is None else "demo"
    opened = open_run(run, config, overrides, seeds, replace=replace, default=default)
    opened.run_all()
    opened.print_summary()
    if is_main():
        console.print(f"Explore it: {explore_line(run)}", highlight=False, soft_wrap=True)


@app.command()
def corpus(
    overrides: Overrides = None, run: RunDir = DEFAULT_RUN, config: ConfigFile = None, replace: Replace = False
) -> None:
    """Read the text source and hold out whole documents for validation and test.

    Bad records are skipped, counted, and listed in skipped.jsonl. Rerun the same command to resume.
    """
    open_run(run, config, overrides, replace=replace).run_stage("corpus")


@app.command()
def tokenize(
    overrides: Overrides = None, run: RunDir = DEFAULT_RUN, config: ConfigFile = None, replace: Replace = False
) -> None:
    """Train or load the tokenizer and pack the corpus into token shards.

    Runs in tokens.workers processes, and under torchrun; the tokens do not depend on it. Rerun the same command to
    resume.
    """
    open_run(run, config, overrides, replace=replace).run_stage("tokens")


@app.command()
def train(
    who: Annotated[str, typer.Argument(help="`teacher` (the concept model) or a student's name.")],
    overrides: Overrides = None,
    run: RunDir = DEFAULT_RUN,
    config: ConfigFile = None,
    seeds: Seeds = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Refuse to train a student from the start; see below.")
    ] = False,
    replace: Replace = False,
) -> None:
    """Train the concept model or a student.

    The demo's students are ntp, ntp_wide, cocomix and cocomix_act. Works under torchrun, one process per device.
    On SIGTERM or SIGUSR1 it saves and exits with code 0, on Ctrl-C with 130; rerun the same command to resume.
    With students_train.schedule constant or wsd and more students_train.steps, a finished student goes on where it can.
    """
    opened = open_run(run, config, overrides, seeds, replace=replace)
    for name in opened.training_stages(who):
        opened.run_stage(name, extend=extend)


@app.command()
def sae(
    overrides: Overrides = None, run: RunDir = DEFAULT_RUN, config: ConfigFile = None, replace: Replace = False
) -> None:
    """Train or load the sparse autoencoder on the concept model's residual stream, and report its quality."""
    open_run(run, config, overrides, replace=replace).run_stage("sae")


@app.command("export-sae")
def export_sae(
    output: Annotated[Path, PathOption("--output", "-o", help="New folder to write.")],
    run: RunDir = DEFAULT_RUN,
    format: Annotated[str, typer.Option("--format", "-f", help="The format; a wrong name lists all.")] = "saelens",
    layer: Annotated[int | None, typer.Option("--layer", help="Of a block in sae.also; default: sae.layer.")] = None,
) -> None:
    """Write the run's sparse autoencoder in another library's format."""
    from cocomix.pipeline.trained import export_sae as export

    folder = export(open_run(run, None, None), format, output, layer)
    console.print(f"{folder}: {format}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def label(
    overrides: Overrides = None,
    run: RunDir = DEFAULT_RUN,
    config: ConfigFile = None,
    name: Annotated[str | None, typer.Option("--name", help="Only this label set; default: all.")] = None,
    predictability: Annotated[
        bool,
        typer.Option("--predictability", help="Also measure how predictable labels are from the text before them."),
    ] = False,
    replace: Replace = False,
) -> None:
    """Store concept labels for every token.

    Also stores the teacher's top logits, if a student distils from them; `--name logits` stores only these.

    With --predictability it says before any training how many nats above their marginal, and beyond the current token,
    a linear probe predicts the labels from the hidden states of a next-token student after a short training. Labels
    under predictability.threshold are warned of. The figure is kept, and repeated when students are trained.
    """
    opened = open_run(run, config, overrides, replace=replace)
    if predictability:
        from cocomix.pipeline.predictability_stages import predictability_table

        stages = opened.measure_predictability(name)
        if is_main():
            console.print(predictability_table(stages))
            for words in (words for words, low in (stage.sentence() for stage in stages) if low):
                errors.print(f"cocomix: {words}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        return
    for stage in opened.label_stages(name):
        opened.run_stage(stage)


app.command()(evaluate)
app.command()(certificate)
app.command()(perplexity)


@app.command()
def report(
    overrides: Overrides = None,
    run: RunDir = DEFAULT_RUN,
    config: ConfigFile = None,
    seeds: Seeds = None,
    output: Annotated[
        Path | None, PathOption("--output", "-o", help="Folder of the report; default: the run's.")
    ] = None,
) -> None:
    """Write report.html and report.json from the finished evaluations, and print the table."""
    opened = open_run(run, config, overrides, seeds)
    opened.write_report(output)
    opened.print_summary(output)


@app.command()
def experiment(
    recipe: Annotated[Path, PathArgument(help="YAML of the experiment, e.g. recipes/cpu/claims.yaml.")],
    overrides: Overrides = None,
    run: Annotated[
        Path | None, PathOption("--run", "-r", help="Folder of its runs; default: runs/NAME-OF-THE-RECIPE.")
    ] = None,
    output: Annotated[Path | None, PathOption("--output", "-o", help="Folder of the report; default: --run.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Number of runs at the same time.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Processes of each run, under torchrun.")] = 1,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds 0 to N-1.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the cost estimate; run nothing.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="With --plan: number of GPUs that share a batch.")] = 8,
    peak_tflops: Annotated[
        float | None, typer.Option(help="With --plan: peak of one GPU, to estimate hours at 40 % of it.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Only write the report of the finished runs.")] = False,
    stage: Annotated[
        list[str] | None, typer.Option(help="Do only SETTING:STAGE, in this process; may be repeated.")
    ] = None,
    replace: Replace = False,
) -> None:
    """Run a grid of variants and seeds and report what it says about the paper's claims.

    Each run is a separate process. Finished runs are kept; rerun the same command to resume.
    """
    from cocomix.experiments.run import run_experiment

    quiet_libraries()
    run_experiment(
        recipe,
        [*(overrides or []), *([f"seeds={list(range(seeds))}"] if seeds else [])],
        folder=run or Path("runs") / recipe.stem,
        output=output,
        jobs=jobs,
        processes=processes,
        plan_for=(gpus, peak_tflops) if plan else None,
        report_only=report_only,
        stages=stage or [],
        replace=replace,
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    run: RunDir = DEFAULT_RUN,
    student: Annotated[str, typer.Option(help="Student of the run, or `teacher`.")] = "cocomix",
    seed: Annotated[int, typer.Option(help="Which of the student's seeds.")] = 0,
    model: Annotated[str | None, typer.Option(help="A model folder or hub id instead of a run's student.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")] = 0.8,
    sample_seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    steer: Annotated[
        str | None,
        typer.Option(help="Concepts to steer, e.g. c123=+4,c7:off,c9=clamp:2@10 (@10: from token 10 of the text on)."),
    ] = None,
) -> None:
    """Continue a text with a trained model."""
    from cocomix.steering.generate import continue_text, locate

    quiet_libraries()
    check_text(prompt)
    source = model or str(locate(run, student, seed))
    text = continue_text(
        source, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=sample_seed, steer=steer
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)


app.command("name")(name_command)
app.command("inspect")(inspect_command)
app.command()(explore)
app.add_typer(pack, name="pack")
app.command()(push)
app.command()(export)
app.command("export-dashboards")(export_dashboards)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench() -> None:
    """Moved: `python -m benchmarks.speed` in a checkout of the repository."""
    raise CocomixError(
        "the benchmarks are no longer part of the package; run `python -m benchmarks.speed` in a checkout"
    )


app.command("steer-eval")(steer_eval_command)
app.command()(retrofit)
app.command()(clean)
app.command()(doctor)


def _session() -> AbstractContextManager[None]:
    """The process group of a torchrun launch of several processes; nothing without one."""
    if world_size() == 1:
        return nullcontext()
    from cocomix.utils.distributed import distributed_session

    return distributed_session()


def main() -> None:
    """Entry point of the `cocomix` command."""
    use_any_encoding()
    try:
        with _session():
            app(standalone_mode=True)
    except CocomixError as error:
        wait_for_main_to_report()
        errors.print("cocomix:", str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        errors.print(f"cocomix: {in_words(error)}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except UnicodeEncodeError as error:
        errors.print(
            f"cocomix: a text or name contains {error.object[error.start]!r}, which is no character, because it was not"
            " given in UTF-8; give it in UTF-8, or rename the folder",
            style="red",
            soft_wrap=True,
        )
        sys.exit(2)
    except Interrupted as stop:
        errors.print(str(stop), highlight=False, markup=False, soft_wrap=True)
        sys.exit(130 if stop.by_user else 0)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # 130 is how Typer reports Ctrl-C
            raise
        errors.print("stopped; rerun the same command to resume", highlight=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
