"""The sparse autoencoder's stage."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.concepts import TopKSAE, hidden_at, sae_quality
from cocomix.config import RunConfig
from cocomix.errors import CocomixError
from cocomix.evaluate.perplexity import window_subset
from cocomix.files import sha256
from cocomix.objectives import SaeObjective
from cocomix.pipeline.data_stages import TokensStage
from cocomix.pipeline.lent import Lending, borrowed, known_as
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.pipeline.training import recipe, train_objective, training_figures
from cocomix.train.data import BatchSource
from cocomix.train.distributed import device, is_main

LOWEST_EXPLAINED_VARIANCE = 0.3
"""Below this a loaded autoencoder is taken for another layer's; published ones explain well over 0.8 of theirs."""


class SaeStage(Stage):
    """A TopK autoencoder on the concept model's residual stream, with its quality on validation text."""

    distributed = True

    def __init__(
        self, run_dir: Path, config: RunConfig, tokens: TokensStage, teacher: TeacherStage, lending: Lending
    ) -> None:
        lent = borrowed(lending, config.sae.pretrained)
        super().__init__(run_dir, "sae", "cocomix sae", [tokens, teacher, *lent])
        self.lending = lending
        self.config, self.seq_len, self.evaluation = config.sae, config.seq_len, config.evaluation
        self.tokens, self.teacher = tokens, teacher

    def settings(self) -> dict[str, Any]:
        if self.config.pretrained is not None:
            source = known_as(self.lending, self.config.pretrained)
            return {"pretrained": source, "layer": self.config.layer, "seq_len": self.seq_len}
        return self.config.model_dump(mode="json") | {"seq_len": self.seq_len, "train": recipe(self.config.train)}

    def outputs(self) -> list[str]:
        return ["model/sae.safetensors", "model/sae.json"]

    def describe(self, figures: dict[str, Any]) -> str:
        return (
            f"explained variance {figures['explained_variance']:.4f}, L0 {figures['l0']:.2f},"
            f" dead latents {figures['dead_share']:.1%}"
        )

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        teacher = self.teacher.model()
        width, n_layers = teacher.config.hidden_size, teacher.config.num_hidden_layers
        if self.config.layer >= n_layers:
            raise CocomixError(
                f"sae.layer {self.config.layer} is outside the concept model's {n_layers} blocks;"
                f" choose 0 to {n_layers - 1}"
            )
        extra: dict[str, Any] = {}
        if self.config.pretrained is not None:
            sae = self._load(Path(self.config.pretrained), width)
            if is_main():
                sae.save_pretrained(folder / "model")
        else:
            sae, extra = self._train(teacher, folder, progress)
        quality = self._quality(sae.to(device()).eval(), teacher)
        if self.config.pretrained is not None and quality["explained_variance"] < LOWEST_EXPLAINED_VARIANCE:
            raise CocomixError(
                f"the SAE {self.config.pretrained} explains {quality['explained_variance']:.2f} of the variance after"
                f" block {self.config.layer}; it belongs to another layer or model, so check sae.layer"
            )
        return extra | quality | {"n_latents": sae.n_latents, "k": sae.k, "layer": self.config.layer}

    def _train(self, teacher: PreTrainedModel, folder: Path, progress: Any) -> tuple[TopKSAE, dict[str, Any]]:
        config, train = self.config, self.config.train
        assert train is not None, "the config asks for pretrained or train"
        torch.manual_seed(train.seed)
        sae = TopKSAE(teacher.config.hidden_size, config.n_latents, config.k)
        shards = self.tokens.shards("train")
        objective = SaeObjective(
            sae,
            teacher,
            layer=config.layer,
            aux_k=config.aux_k,
            aux_coefficient=config.aux_coefficient,
            dead_after_tokens=config.dead_after_tokens,
        )
        first = shards.windows(window_subset(shards.n_windows(self.seq_len), 16), self.seq_len)
        objective.to(device()).initialise(torch.from_numpy(first).to(device()))
        result = train_objective(objective, BatchSource(shards, self.seq_len), train, folder, None, progress)
        return TopKSAE.from_pretrained(folder / "model"), training_figures(result)  # each process may hold a share

    def _load(self, path: Path, width: int) -> TopKSAE:
        sae = TopKSAE.from_pretrained(path) if path.is_dir() else TopKSAE.load_openai_file(path)
        if sae.d_model != width:
            raise CocomixError(
                f"the SAE {path} reads hidden states {sae.d_model} wide and the concept model's are {width} wide;"
                " use an SAE trained on this model"
            )
        return sae

    def _quality(self, sae: TopKSAE, teacher: PreTrainedModel) -> dict[str, Any]:
        val = self.tokens.shards("val")
        windows = window_subset(val.n_windows(self.seq_len), self.evaluation.sae_windows)
        step = self.evaluation.batch_size

        def activations() -> Any:
            for start in range(0, len(windows), step):
                ids = torch.from_numpy(val.windows(windows[start : start + step], self.seq_len)).to(device())
                yield hidden_at(teacher, ids, self.config.layer).flatten(0, 1)

        return sae_quality(sae, activations())

    def model(self) -> TopKSAE:
        """The finished autoencoder."""
        _ = self.figures
        return TopKSAE.from_pretrained(self.folder / "model").eval().requires_grad_(False).to(device())

    def checksum(self) -> str:
        """sha256 over the weight files."""
        return sha256(*sorted((self.folder / "model").glob("*.safetensors")))
