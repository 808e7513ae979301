"""`cocomix export-dashboards`: dashboards of a student's concepts as files, made by the explorer's own code."""

import json
from pathlib import Path

from cocomix.analysis.concept_index import SORTS
from cocomix.analysis.neuronpedia import CREATOR, Origin, model_id, write_neuronpedia
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.sessions import NAME_TOKENS, NO_CONCEPTS, OUTPUT_SCORE
from cocomix.explorer.single_page import dashboard_page
from cocomix.pipeline.trained import check_new, existing_run, student_stage
from cocomix.utils.console import StageProgress, console
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_text

ORDERS = {
    "predicted": "those predicted at most positions",
    "true": "those among the teacher's labels at most positions",
    "recall": "those with the largest share of true positions predicted",
    "precision": "those whose predictions are true most often",
    "stability": "those on whose names two halves of the training text agree most",
    "number": "the first ones by number",
    "name": "the first ones by name",
    OUTPUT_SCORE: "those whose amplification most raises the probability of their own tokens (output score)",
}
"""Every order that concepts are chosen by, and what the first ones by it are."""
assert ORDERS.keys() == {*SORTS, OUTPUT_SCORE}


def export(
    folder: Path,
    student: str,
    seed: int,
    output: Path,
    *,
    concepts: int,
    by: str,
    creator: str | None = None,
    name_tokens: int = NAME_TOKENS,
) -> list[Path]:
    """Write dashboards of a run's student to the new folder `output`; returns the HTML file and Neuronpedia's folder.

    What the explorer makes the first time (names, statistics) is made and kept here, too.

    Args:
        concepts: how many, the first by the order `by`.
        creator: Neuronpedia's id of a user; None: the one its own tools use.

    Raises:
        CocomixError: no such run, finished student or order, a student without concepts, or a folder in use.
    """
    stage = student_stage(existing_run(folder, announce=False), student, seed)
    _ = stage.figures  # finished
    check_new(output)
    if by not in ORDERS:
        raise CocomixError(f"concepts cannot be chosen by {by!r}; choose one of {', '.join(ORDERS)}")
    catalog = ModelCatalog([folder])
    key = f"0/{student}/{seed}"
    info = catalog.entry(key).info
    if not info.predicts_concepts:
        raise CocomixError(NO_CONCEPTS)
    if by == OUTPUT_SCORE and not info.steerable:
        raise CocomixError(f"the student {student} does not mix its concepts in, so none has an output score; use --by")
    catalog.runs[0].name_concepts(name_tokens)
    session = catalog.open(key)
    chosen = session.ranked(by)[:concepts]
    if not chosen:
        raise CocomixError(
            f"no concept of the student {student} has an output score, because none that is predicted often enough has"
            " a name on which two halves of the text agree; choose another order with --by"
        )
    names, dashboards = session.name_store.names(), []
    with StageProgress(console, f"dashboards of {student}, seed {seed}") as progress, session.lock:
        for concept in chosen:
            dashboards.append(session.dashboards.of(concept, names))
            progress(len(dashboards), len(chosen), {})
    title = f"{student}, seed {seed} of {info.run}"
    rule = f"{len(chosen)} of {session.n_concepts} concepts: {ORDERS[by]}."
    origin = Origin(
        title=title,
        model=model_id(f"{info.run}-{student}-seed{seed}"),
        layers=session.model.config.num_hidden_layers,
        concept_layer=session.model.config.concept_layer,
        text=f"validation split of {info.run}",
        rule=rule,
        creator=creator or CREATOR,
    )
    output.mkdir(parents=True, exist_ok=True)
    page = output / "dashboards.html"
    answers = [json.loads(one.model_dump_json()) for one in dashboards]
    write_text(page, dashboard_page(answers, student=title, rule=rule))
    with session.lock:
        features = write_neuronpedia(output / "neuronpedia", session.dashboards, dashboards, origin)
    return [page, features]
