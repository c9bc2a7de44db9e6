"""Load a language model that drafts for a target: in its precision, on its device, with its tokens.

A draft speaks in token ids, so its tokenizer must give them the target's meaning. That is asked of
the ids themselves: vocabularies of one size may differ, those of different sizes may agree.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.load import load_target
from fspad_bench.models.tokenizers import load_tokenizer
from fspad_bench.util.errors import BenchError

TEXTS = (
    "The quick brown fox doesn't jump over 1,234.5 lazy dogs - does it?\n",
    "def f(x):\n    return {'a': [x ** 2, \"b\"]}  # ok\n\n\t\tTabs, and   spaces.",
    "Ünïcödé, 漢字かな, русский текст, العربية, 👩‍💻 €£¥ ≤ ∞",
    "<s>[INST] http://example.org/?q=1&r=%20 [/INST]</s> camelCaseUPPER_lower",
)


def load_draft_model(name: str, target: TransformersTarget) -> TransformersTarget:
    """Load a preset, folder or hub id as a draft for `target`; `self` is the target.

    Raises BenchError for one that cannot be loaded, and, before its weights are read, for one of
    another tokenizer.
    """
    if name == "self":
        return target
    try:
        check_same_tokens(load_tokenizer(name), name, target)
        dtype = str(target.dtype).removeprefix("torch.")
        return load_target(name, device=str(target.device), dtype=dtype)
    except BenchError as error:
        raise BenchError(f"draft model: {error.message}", error.hint) from error


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase, name: str, target: TransformersTarget
) -> None:
    """Raise BenchError unless ids mean the same to a draft's tokenizer and to the target's.

    No token has two ids, no id two tokens, and texts become the same ids; tokens that one of them
    has beyond the other's do no harm.
    """
    known = target.tokenizer
    hint = "a draft model shares its target's tokenizer: choose one of the same family"
    if known is None:
        raise BenchError(f"{target.name} has no tokenizer to compare with that of '{name}'", hint)
    ours = known.get_vocab()
    theirs = tokenizer.get_vocab()
    names = {number: token for token, number in ours.items()}
    for token, number in sorted(theirs.items(), key=lambda entry: entry[1]):
        if ours.get(token, number) != number or names.get(number, token) != token:
            own = f"{names[number]!r} there" if number in names else f"{ours[token]} there"
            raise BenchError(
                f"'{name}' has another tokenizer than {target.name}: its id {number} is {token!r}, "
                f"{own}",
                hint,
            )
    for text in TEXTS:
        if encode(tokenizer, text) != encode(known, text):
            raise BenchError(
                f"'{name}' has another tokenizer than {target.name}: it splits {text[:20]!r}... "
                "otherwise",
                hint,
            )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
