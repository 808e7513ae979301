"""What importing cocomix loads, what registers the model with Transformers, and the deprecated names."""

import subprocess
import sys

import pytest


def fresh(program: str) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_neither_the_package_nor_any_help_loads_torch_or_transformers() -> None:
    said = fresh(
        "import sys, typer, cocomix\n"
        "from cocomix.cli.app import app\n"
        "group = typer.main.get_command(app)\n"
        "for words in ([], *([name] for name in group.commands)):\n"
        "    group.main([*words, '--help'], standalone_mode=False)\n"
        "print(len(group.commands), sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))\n"
    )
    *helps, last = said.splitlines()
    assert sum("Usage:" in line for line in helps) == int(last.split()[0]) + 1 > 10
    assert last.split(maxsplit=1)[1] == "[]"


REGISTERING = {
    "the model": "import cocomix.model",
    "Transformers first": "import transformers, cocomix.model",
    "a module that uses the model": "import cocomix.steering.residual",
    "a name of the package": "from cocomix import CoCoMixForCausalLM",
}


@pytest.mark.parametrize("first", REGISTERING)
@pytest.mark.long
def test_transformers_knows_the_model(first: str) -> None:
    said = fresh(
        f"{REGISTERING[first]}\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "config = AutoConfig.for_model('cocomix', vocab_size=8, hidden_size=8, num_hidden_layers=2,"
        " num_attention_heads=1, concept_layer=1, num_concepts=8, concept_top_k=2)\n"
        "model = AutoModelForCausalLM.from_config(config)\n"
        "import cocomix, sys\n"
        "print(isinstance(model, cocomix.CoCoMixForCausalLM), isinstance(config, cocomix.CoCoMixConfig))\n"
        "print(sum(type(finder).__module__.startswith('cocomix') for finder in sys.meta_path))\n"
    )
    assert said.split() == ["True", "True", "0"]


OLD = {
    "cocomix.concepts": ("TopKSAE attribute select_labels LabelStore hidden_at", ("sae", "labels", "model")),
    "cocomix.concepts.formats": ("load_sae", ("sae",)),
    "cocomix.steer": ("Ablate Amplify Clamp Dampen steered parse_steering", ("steering",)),
}


@pytest.mark.parametrize("old", OLD)
@pytest.mark.long
def test_names_of_earlier_versions_work_with_a_warning_that_names_the_new_ones(old: str) -> None:
    names, new = OLD[old]
    said = fresh(
        "import importlib, sys, warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    exec('from {old} import {', '.join(names.split())}')\n"
        f"    exec('from {old} import {names.split()[0]}')\n"
        "ours = [str(one.message) for one in caught if one.category is FutureWarning]\n"
        "ours = [text for text in ours if 'cocomix' in text]\n"
        "print(len(ours), *ours)\n"
        f"homes = [importlib.import_module('cocomix.' + name) for name in {new!r}]\n"
        f"names = {names.split()!r}\n"
        "print(all(any(getattr(home, name, None) is globals()[name] for home in homes) for name in names))\n"
    )
    warning, same = said.splitlines()
    assert warning.startswith("1 ") and all(f"cocomix.{name}" in warning for name in new) and same == "True"


def test_an_unknown_name_is_refused() -> None:
    import cocomix

    with pytest.raises(AttributeError, match="no attribute 'CoCoMix'"):
        cocomix.CoCoMix  # noqa: B018
    assert {"CoCoMixConfig", "CocomixError"} <= set(dir(cocomix))


EXTRAS = ("lm_eval", "accelerate", "datasets", "pyarrow", "tensorboard", "sae_lens", "sparsify", "wandb")


@pytest.mark.parametrize(
    "module", ["pipeline.run", "pipeline.concept_stages", "pipeline.evaluation_stages", "explorer.app", "hub", "doctor"]
)
@pytest.mark.long
def test_no_extra_is_needed_by_what_does_not_use_it(module: str) -> None:
    fresh(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\nimport cocomix.{module}\n")
