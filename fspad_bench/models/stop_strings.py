"""Stop strings: an output ends with the token that completes one of them, wherever it lies in the
tokens.

- An instance is the `stop` of a `Limit`: it decodes new tokens and looks for its strings.
- Only the last tokens are decoded, as many as a stop string may span. What they seem to complete is
  looked for in the whole text, so that the answer is the whole text's.
- A stop string may name a special token. The text is searched with special tokens and without them.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

MARGIN = 8  # characters before a stop string: a decoder may change what a piece of text begins with


class StopStrings:
    """Whether the last of some new tokens completes one of `strings`; an empty string ends nothing.

    To be asked of an output's tokens one after another, as a `Limit` does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.strings = tuple(filter(None, strings))
        self.special = frozenset(tokenizer.all_special_ids)
        self.needed = max(map(len, self.strings), default=0) + MARGIN

    def __call__(self, tokens: Sequence[int]) -> bool:
        tail = self._tail(tokens)
        return self._ends(tail) and (len(tail) == len(tokens) or self._ends(tokens))

    def cut(self, text: str) -> str:
        """Return the text before the first stop string in it."""
        places = [text.find(string) for string in self.strings]
        return text[: min((place for place in places if place >= 0), default=len(text))]

    def _tail(self, tokens: Sequence[int]) -> Sequence[int]:
        """Return the last tokens: enough for a stop string to lie in them, but for the last one."""
        size = self.needed
        while size < len(tokens) and len(self._text(tokens[-size:-1], True)) < self.needed:
            size *= 2
        return tokens[-size:]

    def _ends(self, tokens: Sequence[int]) -> bool:
        if self._holds(self._text(tokens, False)):
            return True
        return not self.special.isdisjoint(tokens) and self._holds(self._text(tokens, True))

    def _holds(self, text: str) -> bool:
        return any(string in text for string in self.strings)

    def _text(self, tokens: Sequence[int], is_plain: bool) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=is_plain))
