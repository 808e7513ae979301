"""Continue a text with a trained model, of a run or any other."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from cocomix.data.special_tokens import policy_of_model
from cocomix.data.tokenizer import load_tokenizer
from cocomix.model.interventions import steered
from cocomix.model.loading import as_run, load_causal_lm
from cocomix.model.text_config import text_shape
from cocomix.steering.serialization import parse_steering
from cocomix.utils.advice import command_line
from cocomix.utils.errors import CocomixError, tokenizer_errors


def locate(run_dir: Path, student: str, seed: int) -> Path:
    """Folder of a run's trained model.

    Raises:
        CocomixError: there is none of that name and seed.
    """
    root = run_dir.resolve()
    folder = (
        root / "teacher" / "model" if student == "teacher" else root / "students" / student / f"seed{seed}" / "model"
    )
    if not folder.resolve().is_relative_to(root) or not (folder / "config.json").exists():
        trained = ", ".join(sorted(str(p.relative_to(root / "students")) for p in (root / "students").glob("*/seed*")))
        raise CocomixError(
            f"{run_dir} has no trained {student!r} of seed {seed}"
            + (f"; it has: {trained}" if trained else f"; run {command_line('cocomix demo', run_dir)} first")
        )
    return folder


def continue_text(
    source: str, prompt: str, *, max_new_tokens: int, temperature: float, seed: int, steer: str | None = None
) -> str:
    """Prompt and continuation as text; `temperature` 0 is greedy decoding.

    One sequence is generated, without beams, whatever the model's generation_config.json says. With `steer`, such as
    `c123=+4,c7:off`, the model's concepts are steered; see `cocomix.steering.serialization`.

    Raises:
        CocomixError: the model or its tokenizer cannot be loaded, prompt and continuation exceed its positions, it has
            no row for a token of the prompt, it gives no probabilities, or the steering cannot be read or is of
            concepts that the model does not have.
    """
    setting = parse_steering(steer) if steer else {}  # fails before the model is loaded, which takes a while
    tokenizer = load_tokenizer(source)
    model = load_causal_lm(source, "the model")
    special = policy_of_model(tokenizer, source, model.config.model_type)
    with tokenizer_errors(source):
        ids = torch.tensor([special.prompt(tokenizer, prompt) or [special.start_id]])
    shape = text_shape(model.config)
    if shape.positions is not None and shape.positions - ids.shape[1] < 1:
        raise CocomixError(
            f"the prompt has {ids.shape[1]} tokens and the model {shape.positions} positions; shorten the prompt"
        )
    if ids.max() >= shape.vocab_size:
        raise CocomixError(
            f"the prompt has the token {tokenizer.convert_ids_to_tokens(int(ids.max()))!r}, for which the model"
            f" {source} has no row; leave it out"
        )
    room = max_new_tokens if shape.positions is None else min(max_new_tokens, shape.positions - ids.shape[1])
    end: Any = tokenizer.eos_token_id
    ends: Any = as_run(model)["eos_token_id"]
    ends = {end, *(ends if isinstance(ends, list) else [] if ends is None else [ends])}
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.inference_mode(), steered(model, setting) if setting else nullcontext():
        if not model(ids).logits[:, -1].isfinite().all():
            raise CocomixError(
                f"the model {source} gives no finite next-token probabilities; its weights are damaged (infinite or"
                " not a number), so copy or train it again"
            )
        output = model.generate(  # pyright: ignore
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(ends),
            **sampling,
        )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))
