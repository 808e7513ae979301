"""Where special tokens stand: one policy, settled when tokens are made, saved with them, and followed by every path.

- Every document begins with the beginning-of-text token (BOS), if the policy has one, and ends with the end-of-text
  token (EOS). If both are one token, the end of a document is the beginning of the next.
- Every window that a model reads begins with BOS (`TokenShards.windows`), as does every text at inference (`prompt`).
- The first position of a window with BOS is an attention sink: it trains no autoencoder and has no labels
  (`first_position`).
- Text that spells a special token is text. Tokens made before there was a policy have its ids there, no BOS anywhere,
  and models trained on them are asked in the same way (`before_policies`).

A tokenizer that is saved with a policy does by default what the policy says (`with_policy`), so other libraries agree
that load it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, processors

from cocomix.utils.errors import CocomixError, tokenizer_errors

Bos = Literal["auto"] | bool
"""auto: what the tokenizer puts first when it is called with its defaults"""
SAVED = "cocomix_special_tokens"
"""Key of the policy in a tokenizer_config.json."""
LOWEST = -1e6
"""Score of a Unigram piece that is never chosen."""


@dataclass(frozen=True)
class SpecialTokens:
    """Where special tokens stand in what models are trained on and asked.

    Attributes:
        bos_id: first in every document, window and prompt; None: nothing is put first.
        eos_id: behind every document.
        text_is_text: whether a text that spells a special token is encoded as text, not as that token.
    """

    bos_id: int | None
    eos_id: int
    text_is_text: bool = True

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, bos: Bos = "auto") -> "SpecialTokens":
        """The policy for a Transformers tokenizer.

        Args:
            bos: "auto", or whether to put BOS first: its beginning-of-text token, or if it has none its end-of-text
                token.

        Raises:
            CocomixError: it puts more than one token first, and `bos` is "auto".
        """
        return cls._settled(
            lambda text, special: tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"],
            tokenizer.bos_token_id,
            int(tokenizer.eos_token_id),
            bos,
        )

    @classmethod
    def of_backend(cls, backend: Tokenizer, eos_id: int) -> "SpecialTokens":
        """The policy "auto" for a Tokenizers file."""
        return cls._settled(
            lambda text, special: backend.encode(text, add_special_tokens=special).ids, None, eos_id, "auto"
        )

    @classmethod
    def _settled(
        cls, encode: Callable[[str, bool], list[int]], bos_id: int | None, eos_id: int, bos: Bos
    ) -> "SpecialTokens":
        if bos is True:
            return cls(eos_id if bos_id is None else bos_id, eos_id)
        first = _habit(encode)[0] if bos == "auto" else []
        if len(first) > 1:
            raise CocomixError(
                f"the tokenizer puts {len(first)} tokens ({', '.join(map(str, first))}) before a text and cocomix at"
                " most one; set tokens.bos to true or false"
            )
        return cls(first[0] if first else None, eos_id)

    @classmethod
    def before_policies(cls, eos_id: int) -> "SpecialTokens":
        """What tokens have that were made before policies were saved."""
        return cls(bos_id=None, eos_id=eos_id, text_is_text=False)

    @classmethod
    def from_json(cls, saved: Any) -> "SpecialTokens":
        """Read what `to_json` gave.

        Raises:
            ValueError: it is not a policy.
        """
        if not isinstance(saved, dict) or set(saved) != {"bos_id", "eos_id", "text_is_text"}:
            raise ValueError("its special tokens are not a policy")
        policy = cls(**saved)
        ids = [policy.eos_id, *([] if policy.bos_id is None else [policy.bos_id])]
        if any(type(number) is not int or not 0 <= number < 1 << 32 for number in ids):
            raise ValueError("the ids of its special tokens are not valid")
        if type(policy.text_is_text) is not bool:
            raise ValueError("its special tokens do not say whether text is text")
        return policy

    def to_json(self) -> dict[str, Any]:
        """Plain values, by field."""
        return asdict(self)

    @property
    def start_id(self) -> int:
        """What a model has seen before the first token of a text: BOS, else the end of the document before."""
        return self.eos_id if self.bos_id is None else self.bos_id

    @property
    def first_position(self) -> int:
        """First position of a window that has labels and trains an autoencoder: 1 after BOS, else 0."""
        return 0 if self.bos_id is None else 1

    @property
    def before_document(self) -> list[int]:
        """What a document begins with in the stream of tokens."""
        return [] if self.bos_id is None or self.bos_id == self.eos_id else [self.bos_id]

    def prompt(self, tokenizer: Any, text: str) -> list[int]:
        """Ids of a text as a model is asked: BOS first, no EOS behind; none for an empty text without BOS."""
        return [*([] if self.bos_id is None else [self.bos_id]), *self.texts(tokenizer, [text])[0]]

    def texts(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text alone, by a Transformers tokenizer."""
        options = {"split_special_tokens": True} if self.text_is_text else {}
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False, **options)["input_ids"]
        if not self.text_is_text:
            return ids
        backend = getattr(tokenizer, "backend_tokenizer", None)
        reader = TextReader(backend if isinstance(backend, Tokenizer) else None, self, tokenizer.all_special_ids)
        return reader.checked(texts, ids, tokenizer.unk_token_id)

    def describe(self, name: Callable[[int], str]) -> str:
        """In words; `name` gives a token's name."""
        eos = f"{name(self.eos_id)} after every document"
        if self.bos_id is None:
            return f"{eos}, nothing before a text"
        return f"{name(self.bos_id)} first in every document, window and prompt, {eos}"


class TextReader:
    """Keeps special tokens out of what is encoded of a text, where a tokenizer's model would make them itself.

    Tokenizers matches special tokens before its model runs, which can be switched off. A Unigram model still prefers
    the special piece, because its score of 0 is the highest; then the text is encoded again with that score lowered. A
    model that knows whole words alone has nothing else than its unknown token.

    Args:
        backend: of the tokenizer; None where it is Python.
        special_ids: that may not come out.
    """

    def __init__(self, backend: Tokenizer | None, policy: SpecialTokens, special_ids: Sequence[int]) -> None:
        self._backend, self._policy = backend, policy
        self._special = {*special_ids, *(() if policy.bos_id is None else (policy.bos_id,)), policy.eos_id}

    def checked(self, texts: Sequence[str], ids: list[list[int]], unknown: int | None) -> list[list[int]]:
        """`ids` of the texts, without special tokens.

        Args:
            unknown: id of the unknown token, which may come out.

        Raises:
            CocomixError: one cannot be avoided.
        """
        if unknown in (self._policy.bos_id, self._policy.eos_id):
            unknown = None  # GPT-2 calls its end-of-text token unknown, too, and never makes it of a text
        refused = self._special - {unknown}
        spelling = None if unknown is None or self._backend is None else self._backend.id_to_token(unknown)
        for number, text in enumerate(texts):
            if refused.isdisjoint(ids[number]) and not (spelling and spelling in text and unknown in ids[number]):
                continue
            if self._lowered is not None:
                ids[number] = self._lowered.encode(text, add_special_tokens=False).ids
            if wrong := refused.intersection(ids[number]):
                if unknown is None:
                    raise CocomixError(
                        f"the tokenizer makes the special token {min(wrong)} of a text that only spells it; use"
                        " another tokenizer, or take such texts out"
                    )
                ids[number] = [unknown if token in wrong else token for token in ids[number]]
        return ids

    @cached_property
    def _lowered(self) -> Tokenizer | None:
        """The backend with the scores of special pieces lowered; None if its model has no scores."""
        state = {} if self._backend is None else json.loads(self._backend.to_str())
        if state.get("model", {}).get("type") != "Unigram":
            return None
        pieces = state["model"]["vocab"]
        for number in self._special & set(range(len(pieces))):
            pieces[number][1] = LOWEST
        lowered = Tokenizer.from_str(json.dumps(state))
        lowered.encode_special_tokens = True
        lowered.no_truncation()
        lowered.no_padding()
        return lowered


def _habit(encode: Callable[[str, bool], list[int]]) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and behind a text by default."""
    with tokenizer_errors("that was given"):
        plain, default = encode("a", False), encode("a", True)
    for start in range(len(default) - len(plain) + 1):
        if default[start : start + len(plain)] == plain:
            return default[:start], default[start + len(plain) :]
    return [], []


def with_policy(tokenizer: Any, policy: SpecialTokens) -> Any:
    """A tokenizer with which the policy is saved and that follows it by default: the given one if its habit is that.

    Classes of Transformers may restore their own habit when they are loaded, so another habit takes the general class.
    A tokenizer in Python keeps its own; what cocomix gives a model never depends on it.
    """
    tokenizer.init_kwargs[SAVED] = policy.to_json()
    first, behind = _habit(lambda text, special: tokenizer(text, add_special_tokens=special)["input_ids"])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if (first == ([] if policy.bos_id is None else [policy.bos_id]) and not behind) or backend is None:
        return tokenizer
    from transformers import PreTrainedTokenizerFast

    bos = None if policy.bos_id is None else str(tokenizer.convert_ids_to_tokens(policy.bos_id))
    backend.post_processor = processors.TemplateProcessing(
        single="$A" if bos is None else f"{bos} $A",
        pair="$A $B" if bos is None else f"{bos} $A $B",
        special_tokens=[] if bos is None else [(bos, policy.bos_id)],
    )
    general: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        chat_template=tokenizer.chat_template,
        **{name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )
    general.init_kwargs[SAVED] = policy.to_json()
    return general


def saved_with_tokenizer(tokenizer: Any) -> SpecialTokens | None:
    """The policy that was saved with a tokenizer; None if there was none.

    Raises:
        CocomixError: it is damaged.
    """
    saved = tokenizer.init_kwargs.get(SAVED)
    if saved is None:
        return None
    try:
        return SpecialTokens.from_json(saved)
    except (TypeError, ValueError) as error:
        raise CocomixError(
            f"{SAVED} in the tokenizer_config.json of {tokenizer.name_or_path} is damaged ({error}); copy it again"
        ) from error


def trained_policy(tokenizer: Any, source: str, model_type: str) -> SpecialTokens | None:
    """The policy that cocomix trained a model with; None if it did not train it.

    A model that it trained before policies were saved has never seen BOS.

    Args:
        source: its folder or hub id.
        model_type: in its configuration.
    """
    saved = saved_with_tokenizer(tokenizer)
    in_run = any((folder / "stage.json").is_file() for folder in [*Path(source).absolute().parents][:2])
    if saved is None and (model_type == "cocomix" or in_run):
        return SpecialTokens.before_policies(int(tokenizer.eos_token_id))
    return saved


def policy_of_model(tokenizer: Any, source: str, model_type: str) -> SpecialTokens:
    """`trained_policy`, or what the tokenizer of a model from elsewhere does by default."""
    return trained_policy(tokenizer, source, model_type) or SpecialTokens.of_tokenizer(tokenizer)


def with_bos(policy: SpecialTokens, tokenizer: Any, bos: bool) -> SpecialTokens:
    """The policy with or without BOS, whatever it was."""
    return replace(policy, bos_id=SpecialTokens.of_tokenizer(tokenizer, bos).bos_id)
