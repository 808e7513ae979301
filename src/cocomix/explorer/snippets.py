"""A steering setting in forms to use outside the page: a command line, Python, and JSON."""

import shlex

from cocomix.explorer.catalog import CatalogEntry
from cocomix.explorer.schemas import Snippets, SteerRequest
from cocomix.model.interventions import Intervention, Setting
from cocomix.steering.serialization import (
    SharedSetting,
    format_steering,
    from_items,
    from_json,
    parse_steering,
    to_items,
    to_json,
)


def snippets(entry: CatalogEntry, request: SteerRequest) -> Snippets:
    """The same setting and prompt for use elsewhere. With a temperature above 0, other random numbers are drawn there.

    Raises:
        CocomixError: the setting cannot be used.
    """
    setting = from_items(request.steering)
    return Snippets(
        cli=_command(entry, request, setting), python=_python(entry, request, setting), json_=to_json(setting)
    )


def parse_setting(text: str) -> SharedSetting:
    """A setting from the text of a saved JSON file, or from a line such as c12=+4,c7:off.

    Raises:
        CocomixError: it is neither.
    """
    setting = from_json(text) if text.lstrip().startswith("{") else parse_steering(text.strip())
    return SharedSetting(steering=to_items(setting))


def _command(entry: CatalogEntry, request: SteerRequest, setting: Setting) -> str:
    info = entry.info
    student = ["--run", str(entry.run.folder), "--student", info.student, "--seed", str(info.seed)]
    options = [
        *(student if entry.is_finished else ["--model", str(entry.folder)]),
        *("--max-new-tokens", str(request.tokens)),
        *("--temperature", f"{request.temperature:g}"),
        *("--sample-seed", str(request.seed)),
        *(["--steer", format_steering(setting)] if setting else []),
    ]
    # A prompt that looks like an option must stand after all options.
    arguments = [request.prompt, *options] if not request.prompt.startswith("-") else [*options, "--", request.prompt]
    return shlex.join(["cocomix", "generate", *arguments])


def _python(entry: CatalogEntry, request: SteerRequest, setting: Setting) -> str:
    classes = sorted({type(intervention).__name__ for intervention in setting.values()})
    items = ", ".join(f"{concept}: {_call(intervention)}" for concept, intervention in setting.items())
    sampling = f"do_sample=True, temperature={request.temperature:g}" if request.temperature else "do_sample=False"
    lines = [
        "import torch",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "import cocomix.model",
        *([f"from cocomix.steering import {', '.join(classes)}"] if classes else []),
        "",
        f"folder = {str(entry.folder.absolute())!r}",
        f"tokenizer = AutoTokenizer.from_pretrained({_tokenizer(entry)})",
        "model = AutoModelForCausalLM.from_pretrained(folder).eval()",
        f"ids = tokenizer({request.prompt!r}, return_tensors='pt', {_as_trained(entry)}).input_ids",
        f"torch.manual_seed({request.seed})",
        f"with model.steer({{{items}}}):",
        f"    text = model.generate(ids, max_new_tokens={request.tokens}, {sampling})",
        "print(tokenizer.decode(text[0]))",
    ]
    return "\n".join(lines) + "\n"


def _tokenizer(entry: CatalogEntry) -> str:
    """Where the tokenizer is, as Python; a snapshot has none of its own."""
    return "folder" if entry.is_finished else repr(str((entry.stage.folder / "model").absolute()))


def _as_trained(entry: CatalogEntry) -> str:
    """The argument with which the tokenizer encodes a text as the student's training had it."""
    special = entry.stage.tokens.special
    return "split_special_tokens=True" if special.text_is_text else "add_special_tokens=False"


def _call(intervention: Intervention) -> str:
    """The intervention as Python, without arguments at their defaults."""
    amount, start = intervention.amount, intervention.start
    arguments = ([] if amount is None else [repr(amount)]) + ([f"start={start}"] if start else [])
    return f"{type(intervention).__name__}({', '.join(arguments)})"
