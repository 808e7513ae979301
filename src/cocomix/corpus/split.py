"""Hold out whole documents, spread over the source's order (for dated sources: over the eras)."""

from collections.abc import Sequence

from cocomix.corpus.document import Document
from cocomix.errors import CocomixError


def split_documents(
    documents: Sequence[Document], val_fraction: float, test_fraction: float
) -> dict[str, list[Document]]:
    """Assign whole documents to `train`, `val` and `test`, systematically and without chance.

    Walking through the documents, a held-out split takes one whenever its share has grown by a whole document;
    the two splits' turns are half a period apart, so they never want the same document for long.

    Raises:
        CocomixError: no documents, or too few for every split to get one.
    """
    if not documents:
        raise CocomixError("the corpus has no documents; check its path and options")
    splits: dict[str, list[Document]] = {"train": [], "val": [], "test": []}
    owed = {"val": 0.5, "test": 0.0}
    for document in documents:
        owed["val"] += val_fraction
        owed["test"] += test_fraction
        taker = next((name for name in ("val", "test") if owed[name] >= 1), "train")
        if taker != "train":
            owed[taker] -= 1
        splits[taker].append(document)
    empty = [name for name, members in splits.items() if not members]
    if empty:
        raise CocomixError(
            f"{len(documents)} documents are too few to hold out whole ones for {' and '.join(empty)};"
            " add documents or raise corpus.val_fraction and corpus.test_fraction"
        )
    return splits
