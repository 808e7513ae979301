"""The sparse autoencoder's stage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.data.document_windows import DocumentWindows
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.documents import document_positions, document_rule
from cocomix.model.loading import as_run
from cocomix.model.teacher import blocks, hidden_at
from cocomix.model.text_config import text_shape
from cocomix.objectives.sae import SaeObjective
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.data_stages import TokensStage
from cocomix.pipeline.sae_probing import probe_sae
from cocomix.pipeline.stage import ExternalInputs, external_stages, stable_name
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.pipeline.training import ModelStage, recipe, train_objective, training_figures
from cocomix.report.page import write_sae_page
from cocomix.sae.formats import load_sae
from cocomix.sae.kinds import SAE_KINDS
from cocomix.sae.metrics import Reconstruction, spliced_losses
from cocomix.sae.positions import NOTHING, LeftOut
from cocomix.sae.sae import TopKSAE
from cocomix.train.batches import BatchSource
from cocomix.utils.console import is_main
from cocomix.utils.distributed import device, on_main
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import identity

LOWEST_EXPLAINED_VARIANCE = 0.3
"""A loaded autoencoder that explains less is refused as another layer's; published ones explain well over 0.8."""
MOST_SPLICED_WINDOWS = 256
"""At most so many validation windows are run with the reconstruction in place of the hidden states."""

SKIPS = ("skip_first", "skip_norm")
"""Settings that leave positions out; see `cocomix.sae.positions`."""
WITHIN = "document"
"""What positions left out are counted in where the concept model reads windows document by document."""


class SaeStage(ModelStage):
    """An autoencoder on the concept model's residual stream, with its quality on validation text.

    Args:
        tokens: the students'.
        teacher_tokens: the concept model's, if it has a tokenizer of its own.
    """

    distributed = True

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        tokens: TokensStage,
        teacher: TeacherStage,
        external_inputs: ExternalInputs,
        teacher_tokens: TokensStage | None = None,
    ) -> None:
        other_runs = external_stages(external_inputs, config.sae.pretrained)
        self.teacher_tokens = teacher_tokens or tokens
        super().__init__(run_dir, "sae", "cocomix sae", [self.teacher_tokens, teacher, *other_runs])
        self.external_inputs = external_inputs
        self.config, self.seq_len, self.evaluation = config.sae, teacher.seq_len, config.evaluation
        self.tokens, self.teacher = tokens, teacher
        # With these, windows may begin with BOS; whether they do is known when the tokens are made.
        bos = config.tokens.bos is True or (config.tokens.bos == "auto" and config.tokens.tokenizer is not None)
        self._may_leave_out = bos or bool(self._skips())

    def settings(self) -> dict[str, Any]:
        return self._settings() | ({"left_out_within": WITHIN} if self.teacher.context and self._may_leave_out else {})

    def _settings(self) -> dict[str, Any]:
        if self.config.pretrained is not None:
            source = stable_name(self.external_inputs, self.config.pretrained)
            own = identity(self.config)
            skips = {name: own[name] for name in SKIPS if name in own}
            settings = {"pretrained": source, "layer": self.config.layer, "seq_len": self.seq_len} | skips
            # An autoencoder of another run has a k of its own; one from elsewhere may take the configured one.
            return settings if source != self.config.pretrained else settings | {"k": self.config.k}
        return identity(self.config) | {"seq_len": self.seq_len, "train": recipe(self.config.train)}

    def outputs(self) -> list[str]:
        return ["model/sae.safetensors", "model/sae.json"]

    def describe(self, figures: dict[str, Any]) -> str:
        recovered = figures.get("loss_recovered")
        spliced = "" if recovered is None else f", loss recovered {recovered:.4f}"
        return (
            f"explained variance {figures['explained_variance']:.4f}{spliced}, L0 {figures['l0']:.2f},"
            f" dead latents {figures['dead_share']:.1%}"
            + (
                f"; trained on windows of {figures['context_size']} tokens, so it never saw a position above"
                if figures.get("context_size", self.seq_len) < self.seq_len
                else ""
            )
        )

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        teacher = self.teacher.model()
        width, n_layers = text_shape(teacher.config).hidden_size, len(blocks(teacher))
        if self.config.layer >= n_layers:
            raise CocomixError(
                f"sae.layer {self.config.layer} is outside the concept model's {n_layers} blocks;"
                f" choose 0 to {n_layers - 1}"
            )
        extra: dict[str, Any] = {}
        if self.config.pretrained is not None:
            sae, extra = self._load(self.config.pretrained, folder, width)
        else:
            sae, extra = self._train(teacher, folder, progress)
        quality = self._quality(sae.to(device()).eval(), teacher)
        if self.config.pretrained is not None and quality["explained_variance"] < LOWEST_EXPLAINED_VARIANCE:
            raise CocomixError(
                f"the SAE {self.config.pretrained} explains {quality['explained_variance']:.2f} of the variance after"
                f" block {self.config.layer} with {sae.k} latents kept; it belongs to another layer or model, or needs"
                " more of them, so check sae.layer and sae.k"
            )
        figures = (
            extra
            | quality
            | {
                "n_latents": sae.n_latents,
                "k": sae.k if self.config.pretrained is not None else self.config.k,
                "layer": self.config.layer,
                "teacher": as_run(teacher),
            }
        )
        if is_main() and self.evaluation.probe_positions:
            figures |= probe_sae(
                sae,
                teacher,
                self.teacher_tokens,
                layer=self.config.layer,
                seq_len=self.seq_len,
                positions=self.evaluation.probe_positions,
                batch_size=self.evaluation.batch_size,
                left_out=self.to_leave_out(),
            )
        if is_main():
            write_sae_page(figures, folder / "quality.html")
        return figures

    def _train(self, teacher: PreTrainedModel, folder: Path, progress: Any) -> tuple[TopKSAE, dict[str, Any]]:
        config, train = self.config, self.config.train
        assert train is not None, "the config asks for pretrained or train"
        torch.manual_seed(train.seed)
        training = SAE_KINDS[config.kind].make(
            text_shape(teacher.config).hidden_size,
            config.n_latents,
            config.k,
            aux_k=config.aux_k,
            aux_coefficient=config.aux_coefficient,
            dead_after_tokens=config.dead_after_tokens,
            **({} if config.most_active is None else {"most_active": config.most_active}),
            **config.kind_options,
        )
        windows = self.teacher_tokens.windows("train", self.seq_len)
        objective = SaeObjective(
            training,
            teacher,
            layer=config.layer,
            left_out=self.to_leave_out(),
            about={"prepend_bos": windows.special.bos_id is not None, "context_size": self.seq_len},
        )
        n_first = 16 if config.init == "random" else max(16, -(-2 * config.n_latents // self.seq_len))
        data = BatchSource(windows, self.seq_len)
        first = data(window_subset(data.n_windows, n_first), device())
        objective.to(device()).initialise(first["input_ids"], config.init, first.get("padding"))
        result = train_objective(objective, data, train, folder, None, progress)
        sae = TopKSAE.from_pretrained(folder / "model")  # each process may hold a part only
        kind = {} if config.kind == "topk" else {"kind": config.kind, "most_active": sae.k}
        return sae, training_figures(result) | kind

    def _load(self, source: str, folder: Path, width: int) -> tuple[TopKSAE, dict[str, Any]]:
        """Copy the autoencoder `source` into the run; one process fetches and converts it for all."""

        def copy() -> dict[str, Any]:
            loaded = load_sae(source, layer=self.config.layer, d_model=width, k=self.config.k)
            self._check_bos(source, loaded.prepend_bos)
            details: dict[str, Any] = {"format": loaded.format, "hook": loaded.hook}
            windows = {"prepend_bos": loaded.prepend_bos, "context_size": loaded.context_size}
            details |= {fact: value for fact, value in windows.items() if value is not None}
            name = stable_name(self.external_inputs, source)
            origin = {"source": name, "model": loaded.model, "layer": self.config.layer}
            loaded.sae.save_pretrained(folder / "model", **details, **origin)
            return details

        details = on_main(copy)
        return TopKSAE.from_pretrained(folder / "model"), details

    def _check_bos(self, source: str, prepend_bos: bool | None) -> None:
        """Refuse an autoencoder of hidden states that this run's windows do not have."""
        has_bos = self.teacher_tokens.special.bos_id is not None
        if prepend_bos is None or prepend_bos == has_bos:
            return
        trained, here = ("with", "without") if prepend_bos else ("without", "with")
        raise CocomixError(
            f"the SAE {source} was trained on windows {trained} a beginning-of-text token first (prepend_bos) and the"
            f" windows of this run are {here} one; set {self.teacher_tokens.bos_setting}={str(prepend_bos).lower()}"
        )

    def _quality(self, sae: TopKSAE, teacher: PreTrainedModel) -> dict[str, Any]:
        """Figures on evenly spread validation windows; splicing takes fewer, because it runs the model four times."""
        n_windows = self.evaluation.sae_windows
        reconstruction, left_out, read = Reconstruction(sae), self.to_leave_out(), 0
        with torch.no_grad():
            for ids in self.validation(n_windows):
                hidden = hidden_at(teacher, ids, self.config.layer)
                reconstruction.add(left_out.select(hidden, positions=document_positions(teacher, ids)))
                read += ids.numel()
        figures = reconstruction.figures() | {"left_out_share": 1 - reconstruction.tokens / read} | self._skips()
        if left_out != NOTHING and document_rule(teacher.config) is not None:
            figures["left_out_within"] = WITHIN
        spliced = self.validation(min(n_windows, MOST_SPLICED_WINDOWS))
        return figures | spliced_losses(
            teacher, sae, spliced, layer=self.config.layer, mean=reconstruction.mean, left_out=left_out
        )

    def _skips(self) -> dict[str, Any]:
        """The settings among `SKIPS` that leave something out, with the default for this teacher."""
        first = self.config.skip_first
        if first is None:
            first = 1 if self.teacher.published else 0
        chosen = {"skip_first": first or None, "skip_norm": self.config.skip_norm}
        return {name: value for name, value in chosen.items() if value is not None}

    def to_leave_out(self) -> LeftOut:
        """Positions that the next training or measurement leaves out."""
        skips = self._skips()
        first = max(skips.get("skip_first", 0), self.teacher_tokens.special.first_position)
        return LeftOut(first, skips.get("skip_norm"))

    @property
    def skips(self) -> dict[str, Any]:
        """What the finished autoencoder was made without; one of an earlier version has seen every position."""
        return {name: self.figures[name] for name in SKIPS if name in self.figures}

    @property
    def left_out(self) -> LeftOut:
        """Positions that the finished autoencoder is not for."""
        return LeftOut(self.skips.get("skip_first", 0), self.skips.get("skip_norm"))

    def validation(self, n_windows: int) -> Iterator[torch.Tensor]:
        """Token ids of `n_windows` evenly spread validation windows, int64 `[batch, seq]`, on the device.

        Windows shorter than the others, at ends of documents, come without padding, those of one length together.
        """
        val = self.teacher_tokens.windows("val", self.seq_len)
        windows, step = window_subset(val.n_windows(self.seq_len), n_windows), self.evaluation.batch_size
        kinds = [(self.seq_len, windows)]
        if isinstance(val, DocumentWindows):
            lengths = val.bounds(windows).lengths
            kinds = [(int(length), windows[lengths == length]) for length in np.unique(lengths[lengths > 1])[::-1]]
        for length, alike in kinds:
            for start in range(0, len(alike), step):
                ids = val.windows(alike[start : start + step], self.seq_len)[:, :length]
                yield torch.from_numpy(ids).to(device())

    def model(self) -> TopKSAE:
        """The finished autoencoder."""
        self.check()
        return TopKSAE.from_pretrained(self.folder / "model").eval().requires_grad_(False).to(device())
