"""Commands that measure trained models."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import (
    DEFAULT_RUN,
    ConfigFile,
    Overrides,
    PathArgument,
    PathOption,
    Replace,
    RunDir,
    Seeds,
    open_run,
    quiet_libraries,
)
from cocomix.utils.console import console
from cocomix.utils.errors import CocomixError


def evaluate(
    overrides: Overrides = None,
    run: RunDir = DEFAULT_RUN,
    config: ConfigFile = None,
    seeds: Seeds = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, e.g. lambada_openai,wikitext,hellaswag.")
    ] = None,
    task_data: Annotated[
        Path | None, PathOption(help="Folder with the tasks' datasets, each at OWNER/NAME; default: the hub.")
    ] = None,
    student: Annotated[
        list[str] | None, typer.Option(help="Only this student, with --tasks or --snapshots; may be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --tasks: a model folder or hub id instead of a run.")] = None,
    snapshots: Annotated[bool, typer.Option("--snapshots", help="Measure every model saved during training.")] = False,
    test: Annotated[bool, typer.Option("--test", help="With --snapshots: also on the test split.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many documents per task.")] = None,
    fewshot: Annotated[int | None, typer.Option(min=0, help="Number of examples before each question.")] = None,
    batch_size: Annotated[str, typer.Option(help="Rows per forward pass of a task, or auto.")] = "16",
    samples: Annotated[bool, typer.Option("--samples", help="Keep the questions and answers.")] = False,
    output: Annotated[Path | None, PathOption("--output", "-o", help="With --model: folder of the results.")] = None,
    replace: Replace = False,
) -> None:
    """Measure trained students: perplexity and concept recall, or the tasks of lm-evaluation-harness.

    Without options: the held-out splits of every student. Results of tasks and snapshots are kept, like stages, and
    both work under torchrun. With --snapshots, choose by the validation split; use --test after every choice is made.
    """
    if tasks is None and not snapshots:
        if model is not None:
            raise CocomixError("with --model give --tasks; the perplexity of a text is another command, perplexity")
        opened = open_run(run, config, overrides, seeds, replace=replace)
        for stage in opened.evaluation_stages():
            opened.run_stage(stage)
        opened.print_summary()
        return
    from cocomix.pipeline.evaluation_stages import TaskOptions, evaluate_model, evaluate_snapshots, evaluate_tasks

    options = TaskOptions.of(tasks, task_data, limit, fewshot, batch_size, samples)
    if model is not None:
        quiet_libraries()
        evaluate_model(model, options, output)
    elif snapshots:
        evaluate_snapshots(open_run(run, config, overrides, seeds, replace=replace), student or [], options, test=test)
    else:
        evaluate_tasks(open_run(run, config, overrides, seeds, replace=replace), student or [], options)


def certificate(
    run: RunDir = DEFAULT_RUN,
    student: Annotated[
        list[str] | None, typer.Option(help="Only this student; may be repeated. Default: all that mix a vector in.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Does the channel matter? Losses with the vector zeroed, shuffled, averaged or made of the labels.

    Beside them, what students lose that were trained on random labels, on token hashes or with an MLP in the channel's
    place. The figures are those of the evaluations; where they have none yet, they are measured now and not kept.
    """
    from cocomix.pipeline.certificates import certificates
    from cocomix.report.certificate import certificate_table

    quiet_libraries()
    rows = certificates(run, student or [])
    if as_json:
        console.print_json(data=rows)
    else:
        console.print(certificate_table("Does the channel matter?", rows))


def perplexity(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    text: Annotated[Path, PathArgument(help="Folder of token shards, .txt, .md or .jsonl file, or folder of texts.")],
    seq_len: Annotated[int | None, typer.Option(min=2, help="Tokens per window; default: the model's maximum.")] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Move the window by so many tokens and score only those; default: no overlap."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows per forward pass.")] = 8,
    max_windows: Annotated[int | None, typer.Option(min=1, help="At most so many windows, evenly spread.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto.")] = "fp32",
    field: Annotated[str, typer.Option(help="Field of a .jsonl record that holds the text.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Perplexity of any model on any tokens or text; text is tokenised with the model's tokenizer.

    With --stride, each token but the first is scored once, with at least SEQ_LEN - STRIDE tokens of context. Without
    it, each window is scored separately and a last partial window is left out.
    """
    from cocomix.evaluation.perplexity import measure_perplexity

    quiet_libraries()
    figures = measure_perplexity(
        model,
        text,
        seq_len=seq_len,
        stride=stride,
        batch_size=batch_size,
        max_windows=max_windows,
        precision=precision,
        field=field,
    )
    if as_json:
        console.print_json(data=figures)
    else:
        bits = (
            f"bits per byte {figures['bits_per_byte']:.4f}  ({figures['bytes']:,} bytes of text)"
            if "bits_per_byte" in figures
            else "bits per byte: not known, since the tokens alone do not say how many bytes of text they stand for;"
            " give the text"
        )
        console.print(
            f"perplexity {figures['perplexity']:.4f}  (loss {figures['loss']:.6f} nats a token, {figures['tokens']:,}"
            f" tokens scored, windows of {figures['seq_len']})\n{bits}",
            highlight=False,
            soft_wrap=True,
        )


def steer_eval_command(
    run: RunDir = DEFAULT_RUN,
    output: Annotated[
        Path | None, PathOption("--output", "-o", help="Folder for the report; default: RUN/steer-eval.")
    ] = None,
    student: Annotated[str, typer.Option(help="Student of the run, one trained on the SAE's concepts.")] = "cocomix",
    concepts: Annotated[int, typer.Option(min=2, help="Concepts to steer, evenly spread by frequency.")] = 24,
    prompts: Annotated[int, typer.Option(min=1, help="Validation prompts per concept.")] = 8,
    tokens: Annotated[int, typer.Option(min=4, help="Tokens generated after each prompt.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    judge: Annotated[
        Path | None,
        typer.Option(
            help="A run of the same concept model whose autoencoder judges; default: the one that made the labels."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Of all weights and passes: fp32, bf16 or auto.")] = "fp32",
    doses: Annotated[
        list[str] | None,
        typer.Option(help="Doses of a method in place of the usual ones, such as residual=0.5,1,2; may be repeated."),
    ] = None,
    replace: Replace = False,
) -> None:
    """Measure steering: how often the concept appears, what it costs in fluency, and how far it leaks.

    Every seed of the student is compared with no steering, a random concept, residual steering and prompting, at fixed
    doses. Writes report.html and report.json. Finished parts are kept; rerun the same command to resume.
    """
    from cocomix.pipeline.steering_stages import steer_eval
    from cocomix.report.tables import steering_table

    quiet_libraries()
    folder = output or run / "steer-eval"
    report = steer_eval(
        run,
        folder,
        student,
        concepts=concepts,
        prompts=prompts,
        tokens=tokens,
        seed=seed,
        judge=judge,
        precision=precision,
        doses=doses or (),
        replace=replace,
    )
    console.print(steering_table(report))
    console.print(f"Report: {(folder / 'report.html').resolve()}", highlight=False, soft_wrap=True)
