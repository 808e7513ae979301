"""The configuration of an experiment: variants x seeds in one or more settings, and the claims they speak to.

A setting is a whole run (its own corpus, teacher, SAE, labels): `base` with the setting's `overrides` merged in
and a choice of the variants as its students. A text `$NAME/rest` in the overrides stands for the folder of the
setting NAME, so that one setting can use another's teacher (distribution shift) or tokenizer.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cocomix.pipeline.config import RunConfig, validate_config
from cocomix.utils.settings import Section, merge


class SettingConfig(Section):
    """One run of the grid."""

    title: str = Field(description="what it is, in the report")
    overrides: dict[str, Any] = Field(default_factory=dict, description="merged into `base`, key by key")
    variants: tuple[str, ...] | None = Field(default=None, description="variants trained here; empty: all")
    seeds: tuple[int, ...] | None = Field(default=None, description="seeds here; empty: the experiment's")


class Comparison(Section):
    """Two variants, one of which a claim says is better (has the lower test loss)."""

    better: str = Field(description="the variant the claim favours")
    than: str = Field(description="the variant it is compared with")
    settings: tuple[str, ...] = Field(min_length=1, description="settings it is made in")


class ClaimConfig(Section):
    """Which comparisons speak to one of the paper's claims."""

    id: int = Field(ge=1, le=9, description="number of the claim (see cocomix.experiments.claims)")
    compare: tuple[Comparison, ...] = Field(default=(), description="comparisons, all of which must hold")
    steering: tuple[str, ...] = Field(default=(), description="settings whose steering scores speak to it (claim 9)")
    controls: tuple[str, ...] = Field(
        default=(), description="variants without concepts that each `better` must beat, too, before concepts help"
    )


class ControlsConfig(Section):
    """Variants that hold no concept, which concept variants must beat, not only the baseline."""

    variants: tuple[str, ...] = Field(min_length=1, description="concept variants")
    controls: tuple[str, ...] = Field(
        min_length=1, description="what each must beat: random labels, hashes of the current token, an MLP"
    )
    settings: tuple[str, ...] = Field(default=(), description="settings they are compared in; empty: all")


class SteeringConfig(Section):
    """How steering is measured: single concepts are amplified while generating, and looked for with the SAE."""

    variant: str = Field(description="student that is steered")
    concepts: int = Field(default=16, ge=2, description="concepts amplified, one at a time; each is another's control")
    prompts: int = Field(default=8, ge=1, description="validation prompts for each")
    prompt_tokens: int = Field(default=16, ge=1, description="tokens of a prompt")
    new_tokens: int = Field(default=32, ge=1, description="tokens generated")
    strength: float = Field(
        default=4.0,
        allow_inf_nan=False,
        description="added to the concept's logit, in multiples of the position's largest magnitude",
    )


class TuningConfig(Section):
    """A learning rate for each variant, chosen on validation text by as many tries as any other variant has."""

    learning_rates: tuple[float, ...] = Field(min_length=2, description="tried for every variant, in every setting")
    seed: int = Field(
        ge=0, description="seed of the tries; none of the experiment's, so that no reported run was chosen"
    )

    same_as: dict[str, str] = Field(
        default_factory=dict, description="variants that are not tried themselves and take the rate chosen for another"
    )

    def tried(self, variant: str) -> str:
        """The variant whose tries choose this one's rate: itself, unless `same_as` names another."""
        return self.same_as.get(variant, variant)

    @model_validator(mode="after")
    def _rates_are_different(self) -> Self:
        if min(self.learning_rates) <= 0 or len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"learning_rates {list(self.learning_rates)} must be different numbers above 0")
        return self


class TargetConfig(Section):
    """A size and a length that the fitted laws are extrapolated to."""

    title: str = Field(description="what it is, in the report")
    parameters: float = Field(gt=0, description="size, without embeddings")
    tokens: float = Field(gt=0, description="tokens trained on")
    beside: str = Field(default="", description="what others report there, in words")


class ScalingConfig(Section):
    """Families of students at several sizes and lengths, added to the variants as `FAMILY-SIZE-xLENGTH`."""

    setting: str = Field(description="setting they are trained in; name no variants there to train all")
    baseline: str = Field(description="family that the others' gain is measured from")
    families: dict[str, dict[str, Any]] = Field(min_length=2, description="students by name, without `model`, `length`")
    sizes: dict[str, dict[str, Any]] = Field(min_length=1, description="`model` of each size, by name")
    lengths: tuple[int, ...] = Field(min_length=2, description="multiples of the length in students_train")
    seeds: dict[str, tuple[int, ...]] = Field(
        default_factory=dict, description="seeds of a size; empty: the experiment's; the first must be its first"
    )
    tune_length: int | None = Field(
        default=None, description="length at which learning rates are tried, for all of a size; empty: at each"
    )
    targets: tuple[TargetConfig, ...] = Field(default=(), description="where the laws are extrapolated to")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.baseline not in self.families:
            raise ValueError(f"the baseline {self.baseline!r} is no family; there are: {', '.join(self.families)}")
        if min(self.lengths) < 1 or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths {list(self.lengths)} must be different whole numbers above 0")
        if self.tune_length is not None and self.tune_length not in self.lengths:
            raise ValueError(f"tune_length {self.tune_length} is none of the lengths {list(self.lengths)}")
        unknown = [size for size in self.seeds if size not in self.sizes]
        if unknown:
            raise ValueError(
                f"seeds are given for {unknown[0]!r}, which is no size; there are: {', '.join(self.sizes)}"
            )
        return self

    def students(self) -> dict[str, tuple[str, str, int]]:
        """Family, size and length of each variant, by its name."""
        return {
            f"{family}-{size}-x{length}": (family, size, length)
            for family in self.families
            for size in self.sizes
            for length in self.lengths
        }

    def variants(self) -> dict[str, dict[str, Any]]:
        """The students' settings, by name."""
        return {
            name: {"model": self.sizes[size], "length": length} | self.families[family]
            for name, (family, size, length) in self.students().items()
        }

    def tuned(self) -> dict[str, str]:
        """The variants that take the rate of another length."""
        if self.tune_length is None:
            return {}
        return {
            name: f"{family}-{size}-x{self.tune_length}"
            for name, (family, size, length) in self.students().items()
            if length != self.tune_length
        }


class PredictorConfig(Section):
    """A predictor of gains, written down before, that is tested on these variants."""

    file: str = Field(description="its coefficients, e.g. recipes/claims/predictor.yaml; from where the command is run")
    variants: tuple[str, ...] = Field(min_length=1, description="concept variants whose gain is predicted")
    teacher_loss: dict[str, float] = Field(
        default_factory=dict,
        description="validation loss of a setting's teacher, in nats a student's token; needed of a pretrained one",
    )


class ExperimentConfig(Section):
    """A grid of runs and the claims it tests."""

    title: str = Field(description="heading of the report")
    seeds: tuple[int, ...] = Field(min_length=1, description="seeds of every variant")
    baseline: str = Field(default="ntp", description="variant the others are compared with in the tables")
    base: dict[str, Any] = Field(description="a run's configuration, without students")
    variants: dict[str, dict[str, Any]] = Field(min_length=1, description="students by name")
    settings: dict[str, SettingConfig] = Field(min_length=1, description="runs by name, in the order they are made")
    claims: tuple[ClaimConfig, ...] = Field(default=(), description="the paper's claims this grid speaks to")
    controls: tuple[ControlsConfig, ...] = Field(
        default=(), description="controls of concept variants; concepts help only where these are beaten"
    )
    frontier: tuple[str, ...] = Field(
        default=(), description="variants that differ in length or size alone; others are compared with their frontier"
    )
    tuning: TuningConfig | None = Field(
        default=None, description="choose every variant's learning rate first; empty: all have students_train's"
    )
    scaling: ScalingConfig | None = Field(
        default=None, description="families at several sizes and lengths; empty: none"
    )
    predictor: PredictorConfig | None = Field(default=None, description="predict gains by it and test it; empty: no")
    charged: tuple[Literal["teacher", "sae"], ...] = Field(
        default=(), description="whose training is charged to students beside that of their labels; empty: nobody's"
    )
    steering: SteeringConfig | None = Field(default=None, description="measure steering on this variant; empty: no")
    timing_steps: int = Field(default=0, ge=0, description="timed steps a variant, in turns, after training; 0: none")

    @model_validator(mode="before")
    @classmethod
    def _with_scaling(cls, raw: Any) -> Any:
        """The variants of `scaling` beside the others, and the rates these share."""
        if not isinstance(raw, dict) or not raw.get("scaling"):
            return raw
        section = ScalingConfig.model_validate(raw["scaling"])
        raw = raw | {"variants": (raw.get("variants") or {}) | section.variants()}
        if isinstance(raw.get("tuning"), dict):
            same = section.tuned() | (raw["tuning"].get("same_as") or {})
            raw["tuning"] = raw["tuning"] | {"same_as": same}
        return raw

    def trains(self, variant: str, seed: int) -> bool:
        """Whether a variant is trained with a seed of its setting: all are, but where `scaling` gives a size fewer."""
        if self.scaling is None or variant not in self.scaling.students():
            return True
        _, size, _ = self.scaling.students()[variant]
        return size not in self.scaling.seeds or seed in self.scaling.seeds[size]

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for variant in (self.baseline, *self.frontier, *([self.steering.variant] if self.steering else [])):
            self._check(variant, self.variants, "variant", "the experiment")
        earlier: list[str] = []
        for name, setting in self.settings.items():
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"the setting {name!r} may hold only letters, digits, '-' and '_'")
            for variant in (*(setting.variants or ()), *setting.overrides.get("students", {})):
                self._check(variant, self.variants, "variant", f"the setting {name!r}")
            for other, _ in self.external_inputs(name).values():
                self._check(other, earlier, "earlier setting", f"the setting {name!r}")
            if self.tuning is not None and self.tuning.seed in (setting.seeds or self.seeds):
                raise ValueError(f"tuning.seed {self.tuning.seed} is one of the seeds of {name!r}; choose another")
            earlier.append(name)
        if self.scaling is not None:
            self._check(self.scaling.setting, self.settings, "setting", "`scaling`")
            seeds = self.settings[self.scaling.setting].seeds or self.seeds
            for size, own in self.scaling.seeds.items():
                if seeds[0] not in own or not set(own) <= set(seeds):
                    raise ValueError(
                        f"seeds {list(own)} of the size {size!r} must be some of {list(seeds)}, with the first"
                    )
        for variant, other in (self.tuning.same_as if self.tuning else {}).items():
            for name in (variant, other):
                self._check(name, self.variants, "variant", "tuning.same_as")
            if other in (self.tuning.same_as if self.tuning else {}):
                raise ValueError(f"tuning.same_as: {variant!r} takes the rate of {other!r}, which is not tried itself")
            for setting in self.settings:
                if variant in self.names(setting) and other not in self.names(setting):
                    raise ValueError(f"tuning.same_as: {variant!r} needs {other!r} in the setting {setting!r}, too")
        if self.predictor is not None:
            for variant in self.predictor.variants:
                self._check(variant, self.variants, "variant", "`predictor`")
                if not self.variants[variant].get("labels"):
                    raise ValueError(f"`predictor` asks for {variant!r}, which has no labels that could be predictable")
            for setting in self.predictor.teacher_loss:
                self._check(setting, self.settings, "setting", "`predictor`")
        for group in self.controls:
            for variant in (*group.variants, *group.controls):
                self._check(variant, self.variants, "variant", "`controls`")
            for setting in group.settings:
                self._check(setting, self.settings, "setting", "`controls`")
        for claim in self.claims:
            for variant in claim.controls:
                self._check(variant, self.variants, "variant", f"claim {claim.id}")
            for setting in claim.steering:
                self._check(setting, self.settings, "setting", f"claim {claim.id}")
            for comparison in claim.compare:
                for setting in comparison.settings:
                    self._check(setting, self.settings, "setting", f"claim {claim.id}")
                    for variant in (comparison.better, comparison.than):
                        self._check(variant, self.names(setting), "variant", f"claim {claim.id}", f" in {setting!r}")
        return self

    @staticmethod
    def _check(name: str, known: Iterable[str], kind: str, user: str, where: str = "") -> None:
        if name not in known:
            existing = ", ".join(known) or "none"
            raise ValueError(f"{user} asks for the {kind} {name!r}{where}, which does not exist; there are: {existing}")

    def names(self, setting: str) -> tuple[str, ...]:
        """Variants trained in `setting`."""
        return self.settings[setting].variants or tuple(self.variants)

    def external_inputs(self, setting: str) -> dict[str, tuple[str, str]]:
        """Stages of other settings that `setting` uses: `$NAME/STAGE/rest` -> (NAME, STAGE)."""
        inputs = {}
        for text in _references(self.settings[setting].overrides):
            name, _, rest = text[1:].partition("/")
            inputs[text] = (name, rest.partition("/")[0])
        return inputs

    def run_config(self, setting: str, folder: Path, rates: Mapping[str, float | None] | None = None) -> RunConfig:
        """The run configuration of `setting`; settings live below `folder` by their names.

        Args:
            rates: learning rates by variant, where they were chosen.

        Raises:
            CocomixError: it does not validate.
        """
        raw = self._raw(setting, folder)
        for name, rate in (rates or {}).items():
            raw["students"][name] |= {} if rate is None else {"learning_rate": rate}
        return validate_config(raw, f"setting {setting}")

    def tries_config(self, setting: str, folder: Path, tuning: TuningConfig) -> RunConfig:
        """The same with a student for each variant and learning rate beside the variants, which these may refer to."""
        raw = self._raw(setting, folder)
        raw["seeds"] = [tuning.seed]
        for name in dict.fromkeys(tuning.tried(name) for name in self.names(setting)):
            raw["students"] |= {
                try_name(name, number): merge(raw["students"][name], {"learning_rate": rate})
                for number, rate in enumerate(tuning.learning_rates)
            }
        return validate_config(raw, f"setting {setting}")

    def _raw(self, setting: str, folder: Path) -> dict[str, Any]:
        config, names = self.settings[setting], self.names(setting)
        raw: dict[str, Any] = merge(self.base, _resolved(config.overrides, folder))
        raw["title"] = f"{self.title}: {config.title}"
        raw["seeds"] = list(config.seeds or self.seeds)
        raw["baseline"] = self.baseline if self.baseline in names else names[0]
        students = raw.pop("students", {})
        raw["students"] = {name: merge(self.variants[name], students.get(name, {})) for name in names}
        return raw


def try_name(variant: str, number: int) -> str:
    """Name of the student that tries learning rate `number` of the list."""
    return f"{variant}-lr{number}"


def _references(value: Any) -> list[str]:
    """Every text `$NAME/rest` in `value`."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in _references(item)]
    if isinstance(value, list):
        return [text for item in value for text in _references(item)]
    return [value] if isinstance(value, str) and value.startswith("$") else []


def _resolved(value: Any, folder: Path) -> Any:
    """`value` with every text `$NAME/rest` replaced by the path of the setting NAME."""
    if isinstance(value, dict):
        return {key: _resolved(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, folder) for item in value]
    return str(folder / value[1:]) if isinstance(value, str) and value.startswith("$") else value
