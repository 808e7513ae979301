"""k-sparse probing of a run's autoencoder on its validation text, for the quality page."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.data.byte_offsets import ByteOffsets
from cocomix.data.corpus import Corpus
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.documents import document_positions
from cocomix.model.teacher import hidden_at
from cocomix.pipeline.data_stages import TokensStage
from cocomix.sae.positions import LeftOut
from cocomix.sae.sae import TopKSAE
from cocomix.sae.text_answers import NOT_ASKED, probing_figures, window_answers
from cocomix.train.batches import BatchSource
from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError


@torch.no_grad()
def probe_sae(
    sae: TopKSAE,
    teacher: PreTrainedModel,
    tokens: TokensStage,
    *,
    layer: int,
    seq_len: int,
    positions: int,
    batch_size: int,
    left_out: LeftOut,
) -> dict[str, Any]:
    """Figures of k-sparse probes on about `positions` positions of evenly spread validation windows.

    Returns:
        `probing`, see `probing_figures`; nothing if the text is not there any more.
    """
    shards = tokens.windows("val", seq_len)
    windows = window_subset(shards.n_windows(seq_len), max(1, positions // seq_len))
    try:
        documents = Corpus(tokens.corpus.folder / "text").documents("val")
        byte_ends = ByteOffsets(tokens.tokenizer()).ends
        answers, owners = window_answers(shards, documents, byte_ends, windows, seq_len)
    except CocomixError:
        return {}
    parts: list[tuple[np.ndarray, ...]] = []
    data = BatchSource(shards, seq_len)
    for start in range(0, len(windows), batch_size):
        batch = data(windows[start : start + batch_size], device())
        hidden = hidden_at(teacher, batch["input_ids"], layer)
        places = document_positions(teacher, batch["input_ids"])
        latents, kept = sae.encode(hidden), left_out.kept(hidden, batch.get("padding"), places)
        tensors = kept, latents.values.float(), latents.ids, hidden.float()
        parts.append(tuple(tensor.flatten(0, 1).cpu().numpy() for tensor in tensors))
    kept, values, ids, hidden_states = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    asked = {name: np.where(kept, found.ravel(), NOT_ASKED) for name, found in answers.items()}
    figures = probing_figures(asked, owners.ravel(), values, ids, hidden_states, sae.n_latents)
    return {"probing": figures}
