"""Hold out whole documents, spread over the source's order (for dated sources: over the eras)."""

from collections.abc import Mapping

from cocomix.utils.errors import CocomixError

SPLITS = ("train", "val", "test")


class Splitter:
    """Assigns whole documents to `train`, `val` and `test`, systematically and without chance.

    Walking through the documents, a held-out split takes one whenever its share has grown by a whole document;
    the two splits' turns are half a period apart, so they never want the same document for long.

    Attributes:
        owed: documents each held-out split has a right to, with fractions; all that there is to keep of the walk.
    """

    def __init__(self, val_fraction: float, test_fraction: float, owed: Mapping[str, float] | None = None) -> None:
        self._grows = {"val": val_fraction, "test": test_fraction}
        self.owed = dict(owed or {"val": 0.5, "test": 0.0})

    def take(self) -> str:
        """Split of the next document."""
        for name, fraction in self._grows.items():
            self.owed[name] += fraction
        taker = next((name for name in self._grows if self.owed[name] >= 1), "train")
        if taker != "train":
            self.owed[taker] -= 1
        return taker


def check_counts(documents: Mapping[str, int]) -> None:
    """Refuse a corpus in which a split got no document.

    Raises:
        CocomixError: no documents, or too few for every split to get one.
    """
    if not any(documents.values()):
        raise CocomixError("the corpus has no documents; check its path and options")
    empty = [name for name, count in documents.items() if not count]
    if empty:
        raise CocomixError(
            f"{sum(documents.values())} documents are too few to hold out whole ones for {' and '.join(empty)};"
            " add documents or raise corpus.val_fraction and corpus.test_fraction"
        )
