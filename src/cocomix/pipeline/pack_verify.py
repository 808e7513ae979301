"""`cocomix pack verify`: whether a pack says of its text what its teacher says.

The files are compared with their checksums, the text, the concept model and its tokens with what the pack says of them,
and a random share of the windows is labelled again.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocomix.data.corpus import Corpus
from cocomix.data.document_windows import DocumentWindows
from cocomix.data.text_ends import ENDS, read_ends
from cocomix.pipeline.config import validate_config
from cocomix.pipeline.pack import (
    Pack,
    PackCorpus,
    open_pack,
    tensors_checksum,
    text_checksum,
    vocabulary_checksum,
)
from cocomix.pipeline.pack_agreement import MOST_OTHER, TOLERANCE, Agreement, compare, stored_labels
from cocomix.pipeline.pack_build import labelled_windows, score_labeller
from cocomix.pipeline.run import Run
from cocomix.sae.positions import LeftOut
from cocomix.utils.console import StageProgress, console, is_main
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import override

SAYS = (
    "Labels may differ where scores are close: processors and versions of torch add in another order, which changes"
    " last bits, and the autoencoder of the pack is rounded. As good as the new ones counts a label whose new score"
    f" is among the best but for {TOLERANCE:.0%} of the position's largest; at most {MOST_OTHER:.0%} of the positions"
    " may have others, beyond those that rounding changed when the pack was built."
)


class Verified(NamedTuple):
    """What was found of one label set and sign in one corpus."""

    corpus: str
    name: str
    agreed: Agreement
    expected_changed: float
    """share that was labelled otherwise on the builder's machine with the rounded autoencoder"""
    expected_other: float
    """share of other labels there"""

    def __str__(self) -> str:
        positions, other = self.agreed.positions, self.agreed.other_share
        same, close = (count / max(1, positions) for count in (self.agreed.same, self.agreed.close))
        return (
            f"{self.corpus}, {self.name}: of {positions:,} positions {same:.2%} are labelled the same (when it was"
            f" built {1 - self.expected_changed:.2%}), {close:.2%} as good, {other:.2%} otherwise"
            f" ({self.expected_other:.2%})"
        )

    @property
    def sound(self) -> bool:
        """Whether few enough labels are others."""
        return self.agreed.other_share <= self.expected_other + MOST_OTHER


def pack_run(pack: Pack, corpus: PackCorpus, folder: Path, overrides: list[str]) -> Run:
    """A run that has the pack's teacher and one of its corpora, in `folder`."""
    about = pack.about
    labels = {
        one.name: {
            "rule": one.rule, "signs": list(one.signs), "k": one.k,
            "batch_size": one.batch_size, "precision": one.precision,
        }
        for one in corpus.labels
    }  # fmt: skip
    raw: dict[str, Any] = {
        "pack": str(pack.folder),
        "seq_len": about.teacher.seq_len,
        "corpus": corpus.settings,
        "labels": labels,
        "students": {"ntp": {"objective": "ntp"}},
        "students_train": {"steps": 1},
    }
    return Run(folder, validate_config(override(raw, overrides), f"the settings of the pack {about.name}"))


def verify_pack(
    source: str, *, share: float, seed: int, folder: Path, overrides: list[str] | None = None
) -> list[Verified]:
    """Compare a random `share` of the labelled windows of every corpus with labels made anew.

    Args:
        folder: where text and tokens are kept, so that another try goes on.

    Raises:
        CocomixError: a file is damaged, or text, concept model or tokens are not those of the pack.
    """
    pack = open_pack(source, None)
    pack.check()
    found = []
    for corpus in pack.about.corpora:
        run = pack_run(pack, corpus, folder / corpus.name, overrides or [])
        for stage in (run.corpus, run.teacher, run.teacher_tokens):
            run.do(stage, f"{corpus.name}: {stage.name}")
        found += _verify_corpus(pack, corpus, run, share, np.random.default_rng(seed))
    return found


def _verify_corpus(pack: Pack, corpus: PackCorpus, run: Run, share: float, rng: np.random.Generator) -> list[Verified]:
    text = Corpus(run.corpus.folder / "text")
    if vocabulary_checksum(run.teacher_tokens.tokenizer()) != pack.about.teacher.tokenizer:
        raise CocomixError(
            f"the tokenizer of {pack.about.teacher.source} is not the one that the pack {pack.folder} was made with"
        )
    assert tensors_checksum(run.teacher.folder / "model") == pack.about.teacher.checksum, "its stage has compared them"
    totals: dict[str, Agreement] = {}
    for split, about in corpus.splits.items():
        checksum, size = text_checksum(text, split)
        if checksum != about.text:
            raise CocomixError(
                f"the text of {corpus.name} ({split}) is not the one that the pack {pack.folder} was made of; another"
                " version of its source, or other settings, gives another"
            )
        ends = pack.ends(corpus, split, size)
        own = np.array(read_ends(run.teacher_tokens.folder / ENDS / f"{split}.bin"))
        if not np.array_equal(ends, own):
            raise CocomixError(
                f"the tokens of {corpus.name} ({split}) in the pack {pack.folder} are not those its tokenizer makes"
            )
        windows = run.teacher_tokens.windows(split, run.teacher.seq_len, overlapping=True)
        assert isinstance(windows, DocumentWindows), "its tokens are the concept model's own"
        for labels in corpus.labels:
            stored = stored_labels(pack, corpus, split, labels)
            labelled = labelled_windows(windows, stored.covered)
            count = min(len(labelled), max(1, round(share * len(labelled))))
            chosen = np.sort(rng.choice(labelled, count, replace=False)) if count else labelled
            made = _label(pack, run, labels, stored, windows, chosen, f"{corpus.name}: {split}, {labels.name}")
            for sign, agreed in made.items():
                key = f"{labels.name}/{sign}"
                totals[key] = totals.get(key, Agreement(0, 0, 0)) + agreed
    rounding, found = pack.about.sae.rounding, []
    for name, agreed in totals.items():
        shares = (rounding.labels_changed_share, rounding.labels_other_share)
        expected = [share.get(f"{corpus.name}/{name}", 0.0) for share in shares]
        found.append(Verified(corpus.name, name, agreed, *expected))
    return found


def _label(
    pack: Pack, run: Run, labels: Any, stored: Any, windows: DocumentWindows, chosen: np.ndarray, title: str
) -> dict[str, Agreement]:
    about = pack.about.sae
    labeller = score_labeller(
        run.teacher.model(labels.precision),
        pack.sae(),
        labels,
        layer=about.layer,
        first_position=run.teacher_tokens.special.first_position,
        left_out=LeftOut(about.skip_first, about.skip_norm),
    )
    found: dict[str, Agreement] = {}
    with StageProgress(console, title, quiet=not is_main()) as progress:
        for start in range(0, len(chosen), labels.batch_size):
            part = chosen[start : start + labels.batch_size]
            for sign, agreed in compare(stored, labeller, windows, part, labels.k).items():
                found[sign] = found.get(sign, Agreement(0, 0, 0)) + agreed
            progress(start + len(part), len(chosen))
    return found
