"""The split as it was first written, on a list of all documents: the slow twin of the streaming one."""

from collections.abc import Sequence

from cocomix.data import Document


def split_documents(
    documents: Sequence[Document], val_fraction: float, test_fraction: float
) -> dict[str, list[Document]]:
    """Whole documents to `train`, `val` and `test`, whenever a held-out split's share has grown by a whole one."""
    splits: dict[str, list[Document]] = {"train": [], "val": [], "test": []}
    owed = {"val": 0.5, "test": 0.0}
    for document in documents:
        owed["val"] += val_fraction
        owed["test"] += test_fraction
        taker = next((name for name in ("val", "test") if owed[name] >= 1), "train")
        if taker != "train":
            owed[taker] -= 1
        splits[taker].append(document)
    return splits
