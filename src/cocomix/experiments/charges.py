"""What was made once before the students were trained, and what of it each student is charged.

Labels (and stored teacher logits) are made once for the whole corpus. A student pays for them in one of three ways,
each a column of the tables at equal cost: nothing; fully, the share of the corpus that it reads, at most once, as if it
were the only student; or its part of a cost that is shared by all students that read them: seeds, variants, and the
tries of learning rates. The last is never more than the second.

The training of teacher and SAE is charged to nobody, unless the recipe's `charged` names it: then it is added, in the
same two ways, to what is charged for labels or logits.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from cocomix.pipeline.label_stages import ControlSet, LabelSet, ScheduledLabelSet
from cocomix.pipeline.run import Run
from cocomix.pipeline.student_stages import StudentStage

FIGURES = ("flops", "seconds")
Cost = dict[str, float]


class Charges:
    """The costs made once in one setting, and who reads what they bought.

    Args:
        run: the setting's run.
        tries: students trained to choose learning rates, who read labels, too.
        charged: of `teacher` and `sae`, whose training is charged, too.
    """

    def __init__(self, run: Run, tries: Sequence[StudentStage], charged: Sequence[str]) -> None:
        self.run, self.charged = run, charged
        self.first = {stage.student: stage for stage in reversed(run.students)}
        self.readers = Counter(name for stage in (*run.students, *tries) for name in self._read(stage))

    def of(self, student: str, share: float) -> dict[str, float]:
        """`label_...` in full and `shared_label_...` of one student, in FLOPs and seconds.

        Args:
            share: of the corpus that it reads, at most 1.
        """
        full, shared = dict.fromkeys(FIGURES, 0.0), dict.fromkeys(FIGURES, 0.0)
        for name, cost in self._read(self.first[student]).items():
            whole = 1.0 if name in ("teacher", "sae") else share
            for figure in FIGURES:
                full[figure] += cost[figure] * whole
                shared[figure] += cost[figure] * min(whole, 1 / self.readers[name])
        charges = (("label", full), ("shared_label", shared))
        return {f"{kind}_{figure}": cost[figure] for kind, cost in charges for figure in FIGURES}

    def upstream(self) -> dict[str, dict[str, Any]]:
        """For the report: what `teacher` and `sae` took (None if they were not trained here), and whether it counts."""
        return {
            name: {figure: figures.get(figure) for figure in FIGURES}
            | {"charged": name in self.charged, "readers": self.readers[name]}
            for name, figures in (("teacher", self.run.teacher_figures), ("sae", self.run.sae.figures))
        }

    def _read(self, stage: StudentStage) -> dict[str, Cost]:
        """What a student reads that was made once, by name, with its cost; nothing for what has not been made."""
        sets = dict(_stored(stage.labels))
        found = {name: labels.made_once() for name, labels in sets.items()}
        if stage.logits is not None:
            found[stage.logits.name] = {figure: stage.logits.figures[figure] for figure in FIGURES}
        if (found or "teacher" in stage.config.reads) and "teacher" in self.charged:
            found["teacher"] = _training(self.run.teacher_figures)
        if sets and "sae" in self.charged:
            found["sae"] = _training(self.run.sae.figures)
        return found


def _stored(labels: LabelSet | None) -> Iterator[tuple[str, LabelSet]]:
    """The sets that the teacher made, behind schedules and controls."""
    if isinstance(labels, ScheduledLabelSet):
        for each in labels.sets:
            yield from _stored(each)
    elif isinstance(labels, ControlSet):
        yield from _stored(labels.source)
    elif labels is not None:
        yield f"labels/{labels.set_name}", labels


def _training(figures: dict[str, Any]) -> Cost:
    return {figure: figures.get(figure) or 0.0 for figure in FIGURES}
