"""A steering setting as a command line, as Python, and as JSON."""

import shlex

from cocomix.explorer.catalog import Entry
from cocomix.explorer.schemas import AskedToSteer, Copies
from cocomix.model.interventions import Setting
from cocomix.steering.serialization import (
    SharedSetting,
    format_steering,
    from_items,
    from_json,
    parse_steering,
    to_items,
    to_json,
)


def copies(entry: Entry, asked: AskedToSteer) -> Copies:
    """What does the same outside the page: the same setting and prompt; samples are drawn otherwise there.

    Raises:
        CocomixError: the setting cannot be used.
    """
    setting = from_items(asked.steering)
    return Copies(cli=_command(entry, asked, setting), python=_python(entry, asked, setting), json_=to_json(setting))


def read_setting(text: str) -> SharedSetting:
    """A setting, as it lies in a file, from a JSON file's text, or from a line such as c12=+4,c7:off.

    Raises:
        CocomixError: it is neither.
    """
    setting = from_json(text) if text.lstrip().startswith("{") else parse_steering(text.strip())
    return SharedSetting(steering=to_items(setting))


def _command(entry: Entry, asked: AskedToSteer, setting: Setting) -> str:
    info = entry.info
    chosen = ["--run", str(entry.run.folder), "--student", info.student, "--seed", str(info.seed)]
    words = [
        *(chosen if entry.whole else ["--model", str(entry.folder)]),
        *("--max-new-tokens", str(asked.tokens)),
        *("--temperature", f"{asked.temperature:g}"),
        *("--sample-seed", str(asked.seed)),
        *(["--steer", format_steering(setting)] if setting else []),
    ]
    # A prompt that looks like an option must stand behind all of them.
    prompt = [asked.prompt, *words] if not asked.prompt.startswith("-") else [*words, "--", asked.prompt]
    return shlex.join(["cocomix", "generate", *prompt])


def _python(entry: Entry, asked: AskedToSteer, setting: Setting) -> str:
    kinds = sorted({type(one).__name__ for one in setting.values()})
    turned = ", ".join(f"{concept}: {_call(one)}" for concept, one in setting.items())
    sampling = f"do_sample=True, temperature={asked.temperature:g}" if asked.temperature else "do_sample=False"
    lines = [
        "import torch",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "import cocomix.model",
        *([f"from cocomix.steering import {', '.join(kinds)}"] if kinds else []),
        "",
        f"folder = {str(entry.folder.absolute())!r}",
        f"tokenizer = AutoTokenizer.from_pretrained({_tokenizer(entry)})",
        "model = AutoModelForCausalLM.from_pretrained(folder).eval()",
        f"ids = tokenizer({asked.prompt!r}, return_tensors='pt').input_ids",
        f"torch.manual_seed({asked.seed})",
        f"with model.steer({{{turned}}}):",
        f"    text = model.generate(ids, max_new_tokens={asked.tokens}, {sampling})",
        "print(tokenizer.decode(text[0]))",
    ]
    return "\n".join(lines) + "\n"


def _tokenizer(entry: Entry) -> str:
    """A snapshot has none of its own."""
    return "folder" if entry.whole else repr(str((entry.stage.folder / "model").absolute()))


def _call(one: object) -> str:
    """The intervention as Python, without what is not said."""
    amount, start = one.amount, one.start  # pyright: ignore[reportAttributeAccessIssue]
    arguments = ([] if amount is None else [repr(amount)]) + ([f"start={start}"] if start else [])
    return f"{type(one).__name__}({', '.join(arguments)})"
