"""What importing cocomix loads, and that Transformers knows our model whichever is imported first."""

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


FIRST = {
    "theirs": "import transformers, cocomix",
    "ours, then a look whether theirs is installed": (
        "import importlib.util, cocomix; importlib.util.find_spec('transformers')"
    ),
    "one of ours that imports theirs": "import cocomix.steering.residual",
}


@pytest.mark.parametrize("order", FIRST)
def test_transformers_knows_the_model(order: str) -> None:
    said = fresh(
        f"{FIRST[order]}\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "config = AutoConfig.for_model('cocomix', vocab_size=8, hidden_size=8, num_hidden_layers=2,"
        " num_attention_heads=1, concept_layer=1, num_concepts=8, concept_top_k=2)\n"
        "model = AutoModelForCausalLM.from_config(config)\n"
        "import cocomix, sys\n"
        "print(isinstance(model, cocomix.CoCoMixForCausalLM), isinstance(config, cocomix.CoCoMixConfig))\n"
        "print(sum(type(finder).__module__.startswith('cocomix') for finder in sys.meta_path))\n"
    )
    assert said.split() == ["True", "True", "0"]


def test_what_the_model_imports_outside_of_its_package_leaves_transformers_alone() -> None:
    said = fresh(
        "import ast, sys\n"
        "from pathlib import Path\n"
        "import cocomix.model\n"
        "ours = [name for name in sys.modules if name.startswith('cocomix.')]\n"
        "ours = [name for name in ours if not name.startswith('cocomix.model')]\n"
        "print(len(ours))\n"
        "for name in ours:\n"
        "    for node in ast.walk(ast.parse(Path(sys.modules[name].__file__).read_text())):\n"
        "        names = [node.module] if isinstance(node, ast.ImportFrom) else []\n"
        "        names += [one.name for one in node.names] if isinstance(node, ast.Import) else []\n"
        "        if any((one or '').split('.')[0] == 'transformers' for one in names): print(name)\n"
    )
    count, *offenders = said.split()
    assert int(count) > 5 and not offenders


def test_an_unknown_name_is_refused() -> None:
    import cocomix

    with pytest.raises(AttributeError, match="no attribute 'CoCoMix'"):
        cocomix.CoCoMix  # noqa: B018
    assert {"CoCoMixConfig", "CocomixError"} <= set(dir(cocomix))
