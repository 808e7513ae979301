"""The sparse autoencoder's stage: one autoencoder, or several layers' from one pass of the concept model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.analysis.naming import FOUND
from cocomix.data.document_windows import DocumentWindows
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.documents import document_positions, document_rule
from cocomix.model.loading import as_run
from cocomix.model.teacher import blocks, hidden_at_layers
from cocomix.model.text_config import text_shape
from cocomix.objectives.sae import SaeLayersObjective, SaeObjective, layer_folder
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.data_stages import TokensStage
from cocomix.pipeline.sae_probing import probe_sae
from cocomix.pipeline.stage import ExternalInputs, external_stages, stable_name
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.pipeline.training import ModelStage, recipe, train_objective, training_figures
from cocomix.report.page import write_sae_page
from cocomix.sae.contrast import DIRECTIONS
from cocomix.sae.formats import load_sae
from cocomix.sae.kinds import SAE_KINDS
from cocomix.sae.metrics import Reconstruction, spliced_losses
from cocomix.sae.positions import NOTHING, LeftOut
from cocomix.sae.sae import TopKSAE
from cocomix.steering.study.concepts import spread_windows
from cocomix.steering.study.context import BATCH
from cocomix.train.batches import BatchSource
from cocomix.utils.console import is_main
from cocomix.utils.distributed import device, on_main
from cocomix.utils.env import autocast
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import check_weights, sha256
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
    """Autoencoders on the concept model's residual stream, with their quality on validation text.

    Args:
        tokens: the students'.
        teacher_tokens: the concept model's, if it has a tokenizer of its own.
        layer: which of its layers readers of the stage see, in figures, model and checksum; None: the first one.
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
        layer: int | None = None,
    ) -> None:
        self.layer = config.sae.layer if layer is None else layer
        """block whose autoencoder its readers see"""
        self.others: dict[int, SaeStage] = {}
        """this stage as readers of other layers see it, by layer"""
        self._directions: dict[tuple[str, int, str], torch.Tensor] = {}
        self._arguments = (run_dir, config, tokens, teacher, external_inputs, teacher_tokens)
        other_runs = external_stages(external_inputs, config.sae.pretrained)
        self.teacher_tokens = teacher_tokens or tokens
        super().__init__(run_dir, "sae", "cocomix sae", [self.teacher_tokens, teacher, *other_runs])
        self.external_inputs = external_inputs
        self.config, self.seq_len, self.evaluation = config.sae, teacher.seq_len, config.evaluation
        self.tokens, self.teacher = tokens, teacher
        # With these, windows may begin with BOS; whether they do is known when the tokens are made.
        bos = config.tokens.bos is True or (config.tokens.bos == "auto" and config.tokens.tokenizer is not None)
        self._may_leave_out = bos or bool(self._skips())

    def of_layer(self, layer: int) -> "SaeStage":
        """This stage as readers of another layer's autoencoder see it: the same record and folder."""
        if layer == self.layer:
            return self
        if layer not in self.others:
            self.others[layer] = type(self)(*self._arguments, layer=layer)
        return self.others[layer]

    @property
    def names_file(self) -> str:
        """The run's file of the names of its concepts."""
        return FOUND if self.layer == self.config.layer else f"names-{layer_folder(self.layer)}.json"

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
        return [f"{folder}/{file}" for folder in self._folders for file in ("sae.safetensors", "sae.json")]

    @property
    def _folders(self) -> dict[str, int]:
        """Folders of the autoencoders below the stage's, with their layers."""
        others = {f"model/{layer_folder(layer)}": layer for layer in self.config.also}
        return {"model": self.config.layer} | others

    @property
    def model_folder(self) -> Path:
        """Folder of its layer's autoencoder."""
        (found,) = (folder for folder, layer in self._folders.items() if layer == self.layer)
        return self.folder / found

    def verify(self) -> None:
        for folder in self._folders:
            check_weights(self.folder / folder, self.redo_hint)

    def checksum(self) -> str:
        return sha256(*sorted(self.model_folder.glob("*.safetensors")))

    @property
    def figures(self) -> dict[str, Any]:
        """As any stage's; of another layer than the first, its own quality in place of that of the first."""
        figures = super().figures
        return figures if self.layer == self.config.layer else figures | figures["layers"][str(self.layer)]

    def describe(self, figures: dict[str, Any]) -> str:
        others = [f"block {layer}: {self._describe(own)}" for layer, own in figures.get("layers", {}).items()]
        return "; ".join([self._describe(figures), *others])

    def _describe(self, figures: dict[str, Any]) -> str:
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
        for name, layer in self.config.named_layers:
            if layer >= n_layers:
                raise CocomixError(
                    f"{name} {layer} is outside the concept model's {n_layers} blocks; choose 0 to {n_layers - 1}"
                )
        extra: dict[str, Any] = {}
        if self.config.pretrained is not None:
            extra = self._load(self.config.pretrained, folder, width)
        else:
            extra = self._train(teacher, folder, progress)
        saes = {layer: TopKSAE.from_pretrained(folder / place) for place, layer in self._folders.items()}
        saes = {layer: sae.to(device()).eval() for layer, sae in saes.items()}
        measured, sae = self._quality(saes, teacher), saes[self.config.layer]
        quality = measured[self.config.layer]
        if self.config.pretrained is not None and quality["explained_variance"] < LOWEST_EXPLAINED_VARIANCE:
            raise CocomixError(
                f"the SAE {self.config.pretrained} explains {quality['explained_variance']:.2f} of the variance after"
                f" block {self.config.layer} with {sae.k} latents kept; it belongs to another layer or model, or needs"
                " more of them, so check sae.layer and sae.k"
            )
        shared = extra | {
            "n_latents": sae.n_latents,
            "k": sae.k if self.config.pretrained is not None else self.config.k,
            "teacher": as_run(teacher),
        }
        for layer, one in saes.items() if is_main() else ():
            if self.evaluation.probe_positions:
                measured[layer] |= probe_sae(
                    one,
                    teacher,
                    self.teacher_tokens,
                    layer=layer,
                    seq_len=self.seq_len,
                    positions=self.evaluation.probe_positions,
                    batch_size=self.evaluation.batch_size,
                    left_out=self.to_leave_out(),
                )
            page = "quality.html" if layer == self.config.layer else f"quality-{layer_folder(layer)}.html"
            write_sae_page(shared | measured[layer], folder / page)
        others = {str(layer): measured[layer] for layer in self.config.also}
        return shared | measured[self.config.layer] | ({"layers": others} if others else {})

    def _train(self, teacher: PreTrainedModel, folder: Path, progress: Any) -> dict[str, Any]:
        train = self.config.train
        assert train is not None, "the config asks for pretrained or train"
        windows = self.teacher_tokens.windows("train", self.seq_len)
        data = BatchSource(windows, self.seq_len)
        about = {"prepend_bos": windows.special.bos_id is not None, "context_size": self.seq_len}
        parts = [self._part(teacher, layer, train.seed, data, about) for layer in self.config.layers]
        objective = parts[0] if len(parts) == 1 else SaeLayersObjective(parts)
        result = train_objective(objective, data, train, folder, None, progress)
        figures = training_figures(result)
        if self.config.kind == "topk":
            return figures
        most = TopKSAE.from_pretrained(folder / "model").k
        return figures | {"kind": self.config.kind, "most_active": most}

    def _part(
        self, teacher: PreTrainedModel, layer: int, seed: int, data: BatchSource, about: dict[str, Any]
    ) -> SaeObjective:
        """The loss of one layer's autoencoder, drawn from `seed` and initialised from the first windows."""
        config = self.config
        torch.manual_seed(seed)
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
        objective = SaeObjective(training, teacher, layer=layer, left_out=self.to_leave_out(), about=about)
        n_first = 16 if config.init == "random" else max(16, -(-2 * config.n_latents // self.seq_len))
        first = data(window_subset(data.n_windows, n_first), device())
        objective.to(device()).initialise(first["input_ids"], config.init, first.get("padding"))
        return objective

    def _load(self, source: str, folder: Path, width: int) -> dict[str, Any]:
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

        return on_main(copy)

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

    def _quality(self, saes: dict[int, TopKSAE], teacher: PreTrainedModel) -> dict[int, dict[str, Any]]:
        """Figures by layer on evenly spread validation windows, of which splicing takes fewer: it runs the model four
        times for each layer."""
        n_windows = self.evaluation.sae_windows
        left_out, read = self.to_leave_out(), 0
        reconstructions = {layer: Reconstruction(sae) for layer, sae in saes.items()}
        with torch.no_grad():
            for ids in self.validation(n_windows):
                positions = document_positions(teacher, ids)
                for layer, hidden in zip(saes, hidden_at_layers(teacher, ids, list(saes)), strict=True):
                    reconstructions[layer].add(left_out.select(hidden, positions=positions))
                read += ids.numel()
        found = {}
        for layer, sae in saes.items():
            seen = reconstructions[layer]
            figures = seen.figures() | {"left_out_share": 1 - seen.tokens / read} | self._skips()
            if left_out != NOTHING and document_rule(teacher.config) is not None:
                figures["left_out_within"] = WITHIN
            spliced = self.validation(min(n_windows, MOST_SPLICED_WINDOWS))
            figures |= spliced_losses(teacher, sae, spliced, layer=layer, mean=seen.mean, left_out=left_out)
            found[layer] = figures | {"layer": layer}
        return found

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

    def directions(self, kind: str, tokens: TokensStage, seq_len: int, precision: str) -> torch.Tensor:
        """Directions of its concepts in the concept model, `[C, d_model]`, computed once in this process.

        Args:
            kind: one of `cocomix.sae.contrast.DIRECTIONS`.
            tokens: training text that the concept model reads, `seq_len` tokens at a time.
            precision: of the concept model's passes.
        """
        key = (kind, seq_len, precision)
        if key not in self._directions:
            found = DIRECTIONS[kind]
            windows = spread_windows(tokens.shards("train"), found.windows, seq_len).split(BATCH)
            teacher, first = self.teacher.model(precision), tokens.special.first_position
            with autocast(device(), precision):
                self._directions[key] = found.of(teacher, self.model(), self.layer, windows, first)
        return self._directions[key]

    def model(self) -> TopKSAE:
        """The finished autoencoder of its layer."""
        self.check()
        return TopKSAE.from_pretrained(self.model_folder).eval().requires_grad_(False).to(device())
