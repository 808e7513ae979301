"""Labels of a pack compared with labels made anew: what must agree, and by how much the rest may differ.

Labels are choices by score, so they change where scores are close. Processors and versions of torch add in another
order, which changes the last bits; a pack's autoencoder in half precision changes more, the third digit. A label counts
as close where the new scores, too, put it among the best but for `TOLERANCE` of the position's largest score. Anything
else is another label. A pack whose labels are of other text, another teacher, layer or rule has hardly any label that
is the same or close; a sound one has few that are neither.
"""

from typing import NamedTuple

import numpy as np
import torch

from cocomix.data.document_windows import DocumentWindows
from cocomix.labels.attribution import ActiveAttribution, select_active, with_sign
from cocomix.labels.labeller import ActiveScores
from cocomix.labels.pack_codec import COVERED, to_labels
from cocomix.pipeline.pack import Pack, PackCorpus, PackLabels

TOLERANCE = 0.05
"""Difference between scores that is accepted, as a share of the largest score of the position."""
MOST_OTHER = 0.01
"""Share of positions with other labels, beyond what rounding changed for the builder, from which a pack is refused."""


class Agreement(NamedTuple):
    """Positions of one set and sign."""

    positions: int
    """compared"""
    same: int
    """with the same labels in the same order, or none in both"""
    close: int
    """with others, as good within the tolerance"""

    def __add__(self, other: object) -> "Agreement":
        assert isinstance(other, Agreement)
        return Agreement(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def changed_share(self) -> float:
        """Share of positions that have not the same labels."""
        return 1 - self.same / self.positions if self.positions else 0.0

    @property
    def other_share(self) -> float:
        """Share of positions whose labels are neither the same nor close."""
        return 1 - (self.same + self.close) / self.positions if self.positions else 0.0


class StoredLabels(NamedTuple):
    """Labels of a split in a pack, by sign, at every token of the stream."""

    covered: np.ndarray
    """bool `[tokens]`"""
    ids: dict[str, np.ndarray]
    """int32 `[tokens, k]`, -100 where there are none"""


def stored_labels(pack: Pack, corpus: PackCorpus, split: str, labels: PackLabels) -> StoredLabels:
    """All labels of a split.

    Raises:
        CocomixError: a file is damaged.
    """
    covered, ids = [], {sign: [] for sign in labels.signs}
    for rows in pack.rows(corpus, split, labels):
        covered.append((rows.flags & COVERED) != 0)
        for sign, parts in ids.items():
            parts.append(to_labels(rows, sign).astype(np.int32))
    empty = np.empty((0, labels.k), dtype=np.int32)
    return StoredLabels(
        np.concatenate([np.empty(0, dtype=bool), *covered]),
        {sign: np.concatenate([empty, *parts]) for sign, parts in ids.items()},
    )


def compare(
    stored: StoredLabels, labeller: ActiveScores, windows: DocumentWindows, chosen: np.ndarray, k: int
) -> dict[str, Agreement]:
    """How the labels of the windows `chosen` agree with new ones, by sign.

    Args:
        labeller: has the signs in `stored` as names.
        k: labels a position.
    """
    seq_len = windows.seq_len
    bounds, places = windows.bounds(chosen), windows.places(chosen, seq_len)
    made = labeller(torch.from_numpy(windows.windows(chosen, seq_len)), bounds)
    used = bounds.used(seq_len) & (places >= 0)
    used[used] = stored.covered[places[used]]
    found = {}
    for sign, fresh in made.items():
        active = ActiveAttribution(
            *(field[torch.from_numpy(used)][None] for field in (fresh.ids, fresh.scores, fresh.scores, fresh.valid))
        )
        active = with_sign(active, labeller.rule, sign)
        found[sign] = agreement(stored.ids[sign][places[used]].astype(np.int64), active, k)
    return found


def agreement(stored: np.ndarray, active: ActiveAttribution, k: int) -> Agreement:
    """How the labels `stored` int64 `[n, k]` agree with the scores of active concepts, `[1, n, K]`."""
    expected = select_active(active, k).targets()[0].numpy()
    same = (stored == expected).all(-1)
    scores, ids = active.scores[0].double().numpy(), active.ids[0].numpy()
    valid = active.valid[0].numpy()
    allowed = TOLERANCE * np.abs(scores).max(-1)
    best = np.sort(scores, axis=-1)[:, -k]  # the k-th best
    matches = stored[:, :, None] == ids[:, None, :]
    own = np.where(matches.any(-1), (scores[:, None, :] * matches).sum(-1), 0.0).min(-1)  # the worst of the stored ones
    labelled = stored[:, 0] >= 0
    good = np.where(labelled, own >= np.maximum(best, 0) - allowed, best <= allowed) & valid
    return Agreement(len(stored), int(same.sum()), int((good & ~same).sum()))
