"""From parts, in order, to token shards: the same stream and the same cuts as if one process had written them.

A part is removed when it is in the shards and that is committed, so tokens need their room on disk once, and a part's
more. In memory are one block of ids and one part's document lengths.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.data.shards import MANIFEST, SHARD, TokenShards, finish_shards
from cocomix.data.tokenize import ENDINGS, part_is_whole
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_sealed, write_sealed
from cocomix.utils.series import FileSeries

BLOCK = 1 << 23


def join_parts(
    parts: Sequence[Path], folder: Path, *, vocab_size: int, eos_id: int, shard_tokens: int, dtype: str
) -> TokenShards:
    """Write `folder` from the records in `parts`; killed and called again, it goes on behind the last part it took.

    What it has to remember lies beside the parts.

    Raises:
        CocomixError: no document at all, or a part is not as it was written; its record is gone then, so that it is
            made again.
    """
    if (folder / MANIFEST).exists():
        return TokenShards.open(folder, verify=False)
    notes = parts[0].parent / f"join-{folder.name}"
    state = _state(notes / "state.json")
    shards = FileSeries(folder, SHARD, state.get("shards"))
    starts = FileSeries(notes, "starts-{}.int64", state.get("starts"))
    done, n_tokens, n_documents = (state.get(name, 0) for name in ("parts", "tokens", "documents"))
    _refuse_spoilt(parts[done:])
    limit = shard_tokens * np.dtype(dtype).itemsize
    for number in range(done, len(parts)):
        lengths = np.fromfile(parts[number].with_suffix(".lengths"), dtype="<i8")
        with parts[number].with_suffix(".ids").open("rb") as stream:
            while block := stream.read(BLOCK):
                shards.fill(block, limit)
        ends = np.cumsum(lengths) + n_tokens
        starts.write((ends - lengths).astype("<i8").tobytes())
        n_tokens, n_documents = n_tokens + int(lengths.sum()), n_documents + len(lengths)
        state = {"parts": number + 1, "tokens": n_tokens, "documents": n_documents}
        write_sealed(notes / "state.json", state | {"shards": shards.commit(), "starts": starts.commit()})
        for ending in ENDINGS:
            parts[number].with_suffix(ending).unlink()
    shards.cut()
    shards.close()
    starts.cut()
    starts.close()
    return finish_shards(
        folder,
        shards.files,
        [notes / entry["file"] for entry in starts.files],
        n_tokens=n_tokens,
        n_documents=n_documents,
        vocab_size=vocab_size,
        eos_id=eos_id,
        dtype=dtype,
    )


def _refuse_spoilt(parts: Sequence[Path]) -> None:
    spoilt = [part for part in parts if not part_is_whole(part)]
    for part in spoilt:
        part.unlink(missing_ok=True)
    if spoilt:
        raise CocomixError(
            f"{spoilt[0].parent} lost tokens of {len(spoilt)} files before they were joined;"
            " run `cocomix tokenize` again, which makes them anew"
        )


def _state(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except (OSError, ValueError):
        return {}
