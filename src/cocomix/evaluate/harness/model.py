"""The model type `cocomix` of lm-evaluation-harness: its own `hf` class with another way in.

Scoring, windows, batches and generation are the harness's. What had to differ:

- loading: safetensors only, nothing executed from the folder, one sentence for a bad one;
- processes: the harness shares documents among processes on several GPUs of one machine only; here among all
  processes of a torch.distributed group, CPU included;
- `model_sha`: checksum of local weights (the harness asks the hub for a commit, which a folder does not have);
- generation's default length is cut to half of a model with few positions, and so leaves room for a prompt.

Padding needs nothing: the harness pads scored rows on the right without a mask, where causal models never look, and
prompts on the left with one; a CoCoMix model's cache counts its own slots.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import get_dtype
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import cocomix
from cocomix.errors import CocomixError
from cocomix.files import sha256
from cocomix.students import load_causal_lm
from cocomix.tokens import load_tokenizer
from cocomix.train.distributed import device as own_device
from cocomix.train.distributed import rank, world_size

OPTIONS = frozenset(
    {
        "add_bos_token",
        "backend",
        "logits_cache",
        "max_batch_size",
        "max_length",
        "mixed_precision_dtype",
        "prefix_token_id",
        "softmax_dtype",
        "truncation",
    }
)
"""Arguments of the harness's `hf` that are handed on to it."""


@register_model("cocomix")
class CoCoMixLM(HFLM):
    """Any model folder or hub id that `cocomix` loads, plain Transformers models included.

    Args:
        pretrained: folder, hub id, or a loaded model (then `tokenizer` is needed).
        tokenizer: folder, hub id or loaded; default: beside the model.
        device: e.g. "cuda:1"; default, and where there is none such: this process's own.
        dtype: of the weights, e.g. "bfloat16"; default: as saved.
        batch_size: rows of a forward pass, or "auto" (tries 64 rows of full length first, halves when out of memory).
        options: see `OPTIONS`; the harness's documentation explains them.

    Raises:
        CocomixError: nothing loadable there, or an option this model type does not have.
    """

    def __init__(
        self,
        pretrained: str | Path | PreTrainedModel,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        batch_size: int | str | None = 1,
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - OPTIONS)
        if unknown:
            raise CocomixError(
                f"the model type cocomix has no argument {unknown[0]!r}; it takes pretrained, tokenizer, device, dtype,"
                f" batch_size, {', '.join(sorted(OPTIONS))}"
            )
        self._source = pretrained if isinstance(pretrained, str | Path) else pretrained.name_or_path
        loaded = load_causal_lm(pretrained, "the model") if isinstance(pretrained, str | Path) else pretrained
        if dtype != "auto":
            loaded = loaded.to(get_dtype(dtype))
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = load_tokenizer(str(tokenizer or self._source))
        super().__init__(
            pretrained=loaded.to(_device(device)),  # pyright: ignore[reportArgumentType]
            tokenizer=tokenizer,  # pyright: ignore[reportArgumentType]
            batch_size=1 if batch_size is None else batch_size,
            **options,
        )
        self.pretrained = str(self._source)
        if dist.is_initialized():
            self._rank, self._world_size = rank(), world_size()

    @property
    def max_gen_toks(self) -> int:
        return min(super().max_gen_toks, self.max_length // 2)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, one after the other, flat."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return torch.cat([part.reshape(-1) for part in parts])

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def get_model_info(self) -> dict[str, Any]:
        weights = sorted(Path(self._source).glob("*.safetensors")) if Path(self._source).is_dir() else []
        return {
            "model_source": "cocomix",
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_revision": self.revision,
            "model_sha": sha256(*weights) if weights else getattr(self.config, "_commit_hash", None) or "",
            "model_type": self.config.model_type,
            "cocomix_version": cocomix.__version__,
        }


def _device(wanted: str | torch.device | None) -> torch.device:
    """The wanted device; the harness's command line asks for "cuda" wherever nobody says otherwise."""
    if wanted is None or (str(wanted).startswith("cuda") and not torch.cuda.is_available()):
        return own_device()
    return torch.device(wanted)
