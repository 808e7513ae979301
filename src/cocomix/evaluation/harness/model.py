"""The model type `cocomix` of lm-evaluation-harness: its `hf` class, loaded our way.

Scoring, windows, batches and generation are the harness's. These things differ:

- loading: safetensors only, no code is executed from the folder, and a bad folder is reported in one sentence;
- processes: documents are divided among all processes of a torch.distributed group, also on CPUs; the harness does so
  only for several GPUs of one machine;
- `model_sha`: a checksum of local weights; the harness asks the hub for a commit, which a folder does not have;
- the default length of generated text is at most half of the model's positions, which leaves room for a prompt;
- special tokens: a text is encoded as the model's training had it (`cocomix.data.special_tokens`). Every row begins
  with the beginning-of-text token exactly once where the policy has one, in rolling windows and cut prompts, too; an
  empty context is what training had before a document. Text that spells a special token is text, except one leading
  prefix token, with which the harness marks a start, and chat templates, which are made of special tokens.

Padding needs no change. The harness pads scored rows on the right without a mask, where causal models do not look, and
prompts on the left with a mask, which a CoCoMix model's cache takes into account.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.registry import register_model
from lm_eval.models import huggingface
from lm_eval.models.utils_hf import get_dtype
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import cocomix
from cocomix.data.special_tokens import SpecialTokens, policy_of_model, with_bos
from cocomix.data.tokenizer import load_tokenizer
from cocomix.model.loading import load_causal_lm
from cocomix.utils.console import rank, world_size
from cocomix.utils.distributed import device as process_device
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import sha256

HFLM: Any = huggingface.HFLM  # the harness's registration decorator hides its type
harness_log = logging.getLogger("lm_eval.models.huggingface")
OPTIONS = frozenset(
    {
        "add_bos_token",
        "logits_cache",
        "max_batch_size",
        "max_length",
        "mixed_precision_dtype",
        "prefix_token_id",
        "softmax_dtype",
        "truncation",
    }
)
"""Arguments that are passed on to the harness's `hf` class."""


class CoCoMixLM(HFLM):
    """Any model folder or hub id that `cocomix` loads, including plain Transformers models.

    Args:
        pretrained: folder, hub id, or a loaded model (then `tokenizer` is needed).
        tokenizer: folder, hub id or loaded tokenizer; default: the one in the model's folder.
        device: e.g. "cuda:1"; default, and if there is no such device: this process's device.
        dtype: of the weights, e.g. "bfloat16"; "auto": as saved. The report has it as `model_dtype`.
        batch_size: rows of a forward pass, or "auto" (starts with 64 rows of full length, halves when out of memory).
        options: see `OPTIONS`; the harness's documentation explains them.

    Attributes:
        progress: called with the rows done and the rows expected.
        special: where special tokens stand; `add_bos_token` overrides what the model was trained with.

    Raises:
        CocomixError: the model cannot be loaded, or an option is unknown.
    """

    def __init__(
        self,
        pretrained: str | Path | PreTrainedModel,
        tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int | str | None = 1,
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - OPTIONS)
        if unknown:
            raise CocomixError(
                f"the model type cocomix has no argument {unknown[0]!r}; it takes pretrained, tokenizer, device, dtype,"
                f" batch_size, {', '.join(sorted(OPTIONS))}"
            )
        self._source = str(pretrained if isinstance(pretrained, str | Path) else pretrained.name_or_path)
        loaded: Any = pretrained
        if isinstance(pretrained, str | Path):
            loaded = load_causal_lm(pretrained, "the model", precision="saved" if dtype == "auto" else "fp32")
        if dtype != "auto":
            loaded = loaded.to(get_dtype(dtype))
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = load_tokenizer(str(tokenizer or self._source))
        loaded.to(_device(device))
        self.special: SpecialTokens = policy_of_model(tokenizer, self._source, loaded.config.model_type)
        if options.get("add_bos_token") is not None:
            self.special = with_bos(self.special, tokenizer, bool(options["add_bos_token"]))
        self._template, self._rolling, self._room = False, False, 0
        options = {"backend": "causal", "batch_size": 1 if batch_size is None else batch_size} | options
        if options.get("prefix_token_id") is None:
            options["prefix_token_id"] = self.special.start_id
        harness_log.addFilter(_is_unexpected)
        try:
            super().__init__(pretrained=loaded, tokenizer=tokenizer, **options)
        finally:
            harness_log.removeFilter(_is_unexpected)
        self.pretrained = self._source
        self.progress: Callable[[int, int], None] | None = None
        self._expect(0)
        if dist.is_initialized():
            self._rank, self._world_size = rank(), world_size()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        self._expect(len(requests))
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        self._expect(sum(-(-len(self.tok_encode(request.args[0])) // self.max_length) for request in requests))
        self._rolling, self._room = True, self.special.first_position
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self._rolling, self._room = False, 0

    def _loglikelihood_tokens(self, requests: list[Any], *arguments: Any, **options: Any) -> Any:
        self._room = 0  # windows have been cut by now
        rows = [(text, self._from_bos(context, continuation), continuation) for text, context, continuation in requests]
        return super()._loglikelihood_tokens(rows, *arguments, **options)

    def _from_bos(self, context: list[int], continuation: list[int]) -> list[int]:
        """`context` with BOS first, cut on the left so that BOS stays when the row is cut to the model's positions."""
        bos = self.special.bos_id
        if bos is None:
            return context
        room = max(0, self.max_length - len(continuation))  # the row's last token is not read
        rest = context[1:] if context[:1] == [bos] else context
        return [bos, *rest[max(0, len(rest) - room) :]]

    @property
    def max_length(self) -> int:
        return super().max_length - self._room

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """Ids of a text; `add_special_tokens=False` and rolling windows are without BOS, which is put first there."""
        start, text = self._start(string)
        if self._template:
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            ids = self.special.texts(self.tokenizer, [text])[0]
        bos = self.special.bos_id
        if self._rolling:
            start = None
        elif start is None and bos is not None and add_special_tokens is not False and ids[:1] != [bos]:
            start = bos
        ids = ids if start is None else [start, *ids]
        if not left_truncate_len or len(ids) <= left_truncate_len:
            return ids
        kept = ids[-left_truncate_len:]
        return [bos, *kept[1:]] if bos is not None and ids[0] == bos else kept

    def _start(self, string: str) -> tuple[int | None, str]:
        """The prefix token if the text begins with its spelling, and the rest of the text."""
        prefix = str(self.tokenizer.decode(self.prefix_token_id))
        if self._template or not prefix or not string.startswith(prefix):
            return None, string
        return self.prefix_token_id, string[len(prefix) :]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        if truncation:
            rows = [row[: self.tokenizer.model_max_length] for row in rows]
        padded = self.tokenizer.pad(
            {"input_ids": rows}, padding="longest", padding_side=padding_side, return_tensors="pt"
        )
        return padded["input_ids"], padded["attention_mask"]

    def apply_chat_template(self, *arguments: Any, **options: Any) -> str:
        self._template = True
        return super().apply_chat_template(*arguments, **options)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        self._expect(len(requests))
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _model_call(self, inps: torch.Tensor, **options: Any) -> torch.Tensor:
        logits = super()._model_call(inps, **options)
        self._count(len(inps))
        return logits

    def _model_generate(self, context: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        tokens = super()._model_generate(context, *arguments, **options)
        self._count(len(context))
        return tokens

    def _expect(self, rows: int) -> None:
        self._rows, self._expected = 0, rows

    def _count(self, rows: int) -> None:
        """Report progress. Rows that share a context run once, so there may be fewer; trying batch sizes adds some."""
        self._rows = min(self._rows + rows, self._expected)
        if self.progress is not None:
            self.progress(self._rows, self._expected)

    @property
    def max_gen_toks(self) -> int:
        return min(super().max_gen_toks, self.max_length // 2)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, flattened and concatenated."""
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


register_model("cocomix")(CoCoMixLM)


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Whether to show a log record; not the warnings about a loaded model, which this class always passes."""
    return "already-initialized" not in record.getMessage() and "not of type `str`" not in record.getMessage()


def _device(requested: str | torch.device | None) -> torch.device:
    """The requested device, if there is one; the harness's command line requests "cuda" by default."""
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if requested is None or not there.get(str(requested).split(":")[0], lambda: True)():
        return process_device()
    return torch.device(requested)
