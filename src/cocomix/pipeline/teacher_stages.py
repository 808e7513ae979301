"""Concept model, sparse autoencoder and label stages."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cocomix.concepts import LabelStore, TopKSAE, hidden_at, sae_quality
from cocomix.concepts.labelling import label_split
from cocomix.config import RunConfig
from cocomix.errors import CocomixError
from cocomix.evaluate.flops import labelling_flops
from cocomix.evaluate.perplexity import window_subset
from cocomix.objectives import NtpObjective, SaeObjective
from cocomix.pipeline.data_stages import TokensStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.training import describe_curve, train_objective, training_figures, validation_curve
from cocomix.students import build_plain
from cocomix.train.distributed import device, is_main

SPARE_IDS = 1024
"""Embedding rows a published model may have beyond its tokenizer's vocabulary, as padding for alignment."""


LOWEST_EXPLAINED_VARIANCE = 0.3
"""Below this a loaded autoencoder is taken for another layer's; published ones explain well over 0.8 of theirs."""


class TeacherStage(Stage):
    """The concept model: trained here on the same shards, or loaded and copied into the run."""

    distributed = True

    def __init__(self, run_dir: Path, config: RunConfig, tokens: TokensStage) -> None:
        super().__init__(run_dir, "teacher", "cocomix train teacher", [tokens])
        self.config, self.seq_len, self.evaluation = config.teacher, config.seq_len, config.evaluation
        self.tokens = tokens

    def settings(self) -> dict[str, Any]:
        if self.config.pretrained is not None:
            return {"pretrained": self.config.pretrained, "seq_len": self.seq_len}
        return self.config.model_dump(mode="json") | {"seq_len": self.seq_len}

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{figures['description']}{describe_curve(figures)}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        if self.config.pretrained is not None:
            return self._load(folder, self.config.pretrained)
        train = self.config.train
        assert train is not None, "the config asks for pretrained or train"
        vocab_size = self.tokens.figures["vocab_size"]
        torch.manual_seed(train.seed)
        model = build_plain(self.config.model, vocab_size=vocab_size, seq_len=self.seq_len)
        validate = validation_curve(self.tokens.shards("val"), self.seq_len, self.evaluation, train.precision)
        shards = self.tokens.shards("train")
        result = train_objective(NtpObjective(model), shards, None, self.seq_len, train, folder, validate, progress)
        if is_main():
            self.tokens.tokenizer().save_pretrained(folder / "model")
        return training_figures(result) | {"parameters": model.num_parameters(), "description": _describe(model)}

    def _load(self, folder: Path, source: str) -> dict[str, Any]:
        try:
            model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, use_safetensors=True)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise CocomixError(
                f"the concept model {source} cannot be loaded ({first}); give a model folder or hub id"
            ) from error
        self._check_vocabulary(model, source)
        if model.config.max_position_embeddings < self.seq_len:
            raise CocomixError(
                f"the concept model {source} has {model.config.max_position_embeddings} positions,"
                f" fewer than seq_len {self.seq_len}; lower seq_len"
            )
        if is_main():
            model.save_pretrained(folder / "model")
        return {"parameters": model.num_parameters(), "description": f"{source}: {_describe(model)}"}

    def _check_vocabulary(self, model: PreTrainedModel, source: str) -> None:
        ours = self.tokens.tokenizer()
        size = model.config.vocab_size
        mend = "set tokens.tokenizer to the concept model's own tokenizer"
        if not len(ours) <= size <= len(ours) + SPARE_IDS:
            raise CocomixError(
                f"the concept model {source} has a vocabulary of {size} and the students' tokenizer {len(ours)}; {mend}"
            )
        try:
            theirs = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError):
            return  # no tokenizer beside the weights: sizes are all that can be compared
        if theirs.get_vocab() != ours.get_vocab():
            raise CocomixError(
                f"the concept model {source} numbers its tokens differently from the students' tokenizer; {mend}"
            )

    def model(self) -> PreTrainedModel:
        """The finished concept model, in evaluation mode, taking no gradients."""
        _ = self.figures
        model = AutoModelForCausalLM.from_pretrained(self.folder / "model", use_safetensors=True)
        return model.eval().requires_grad_(False).to(device())  # pyright: ignore[reportArgumentType]

    def checksum(self) -> str:
        """sha256 over the weight files."""
        return _checksum(self.folder / "model")


class SaeStage(Stage):
    """A TopK autoencoder on the concept model's residual stream, with its quality on validation text."""

    distributed = True

    def __init__(self, run_dir: Path, config: RunConfig, tokens: TokensStage, teacher: TeacherStage) -> None:
        super().__init__(run_dir, "sae", "cocomix sae", [tokens, teacher])
        self.config, self.seq_len, self.evaluation = config.sae, config.seq_len, config.evaluation
        self.tokens, self.teacher = tokens, teacher

    def settings(self) -> dict[str, Any]:
        if self.config.pretrained is not None:
            return {"pretrained": self.config.pretrained, "layer": self.config.layer, "seq_len": self.seq_len}
        return self.config.model_dump(mode="json") | {"seq_len": self.seq_len}

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
        result = train_objective(objective, shards, None, self.seq_len, train, folder, None, progress)
        return sae, training_figures(result)

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
        windows = window_subset(val.n_windows(self.seq_len), self.evaluation.curve_windows)
        step = self.evaluation.batch_size

        def activations() -> Any:
            for start in range(0, len(windows), step):
                ids = torch.from_numpy(val.windows(windows[start : start + step], self.seq_len)).to(device())
                yield hidden_at(teacher, ids, self.config.layer).flatten(0, 1)

        with torch.inference_mode():
            return sae_quality(sae, activations())

    def model(self) -> TopKSAE:
        """The finished autoencoder."""
        _ = self.figures
        return TopKSAE.from_pretrained(self.folder / "model").eval().requires_grad_(False).to(device())

    def checksum(self) -> str:
        """sha256 over the weight files."""
        return _checksum(self.folder / "model")


class LabelStage(Stage):
    """Labels by one rule, a set for each sign, for the training and the validation split."""

    distributed = True
    splits = ("train", "val")

    def __init__(self, run_dir: Path, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> None:
        super().__init__(run_dir, f"labels/{name}", f"cocomix label --name {name}", [teacher.tokens, teacher, sae])
        self.config, self.seq_len = config.labels[name], config.seq_len
        self.batch_size = config.evaluation.batch_size
        self.teacher, self.sae, self.tokens = teacher, sae, teacher.tokens

    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json") | {"seq_len": self.seq_len}

    def describe(self, figures: dict[str, Any]) -> str:
        shares = ", ".join(f"{sign} {share:.1%}" for sign, share in figures["train"]["valid_share"].items())
        return f"positions labelled: {shares}; {figures['train']['tokens_per_second']:,.0f} tokens/s"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        teacher, sae = self.teacher.model(), self.sae.model()
        figures: dict[str, Any] = {}
        for split in self.splits:
            figures[split] = label_split(
                teacher,
                sae,
                self.tokens.shards(split),
                folder / split,
                layer=self.sae.config.layer,
                rule=self.config.rule,
                signs=self.config.signs,
                k=self.config.k,
                seq_len=self.seq_len,
                batch_size=self.batch_size,
                lineage=self.lineage(split),
                precision=self.config.precision,
                progress=progress if split == "train" else None,
            )
        per_token = labelling_flops(
            teacher.config,
            n_latents=sae.n_latents,
            k=sae.k,
            layer=self.sae.config.layer,
            rule=self.config.rule,
            seq_len=self.seq_len,
        )
        figures["flops"] = per_token * figures["train"]["tokens"]
        return figures

    def lineage(self, split: str) -> dict[str, Any]:
        """What these labels depend on, by content."""
        return {
            "tokens": self.tokens.shards(split).fingerprint,
            "teacher": self.teacher.checksum(),
            "sae": self.sae.checksum(),
            "layer": self.sae.config.layer,
            "rule": self.config.rule,
            "k": self.config.k,
            "seq_len": self.seq_len,
        }

    def store(self, split: str, sign: str) -> LabelStore:
        """The finished labels of `split` and `sign`, checked against the tokens, teacher and SAE as they are now."""
        _ = self.figures
        return LabelStore.open(self.folder / split / sign, expect=self.lineage(split) | {"sign": sign})


def _checksum(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _describe(model: PreTrainedModel) -> str:
    config = model.config
    return f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}"
