"""What a draft can say: the frequent tokens of its head, and those of the text at hand.

A product with the target's whole vocabulary would cost a small draft more than all else, so a head can say some
thousands of tokens (as in FR-Spec, Zhao et al. 2025, arXiv 2502.14856). What an answer takes from its prompt, names
above all, is often none of them. So the text's own tokens, some ten to a hundred that the head has not, join them while
a prompt is answered: their rows of the LM head are the target's, like those of any other token. In training a batch's
own tokens join.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Vocabulary:
    """`usual [S]`, ascending ids of the target's `size` tokens, and with `prompted` those of a text."""

    def __init__(self, usual: Tensor, size: int, *, prompted: bool) -> None:
        self.usual = usual
        self.size = size
        self.prompted = prompted
        self.known = frozenset(usual.tolist())
        self.is_usual = torch.zeros(size, dtype=torch.bool, device=usual.device)
        self.is_usual[usual] = True

    def joining(self, tokens: Iterable[int]) -> set[int]:
        """Which of these tokens of a text join the usual ones."""
        return set(tokens) - self.known if self.prompted else set()

    def of(self, ids: Tensor) -> Tensor:
        """All that can be said of texts with these tokens, the usual ones first: `[S]`."""
        if not self.prompted:
            return self.usual
        found = ids.unique()
        return torch.cat([self.usual, found[~self.is_usual[found]]])

    def index(self, said: Tensor) -> Tensor:
        """Where each of the target's tokens stands in `said`, -1 where it does not: `[size]`."""
        index = torch.full((self.size,), -1, device=said.device)
        return index.scatter_(0, said, torch.arange(len(said), device=said.device))

    def reached(self, choice: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """Whether a draft can say what follows these rows, `[N]`.

        Row i of a sequence, `rows [B, L - 1]`, is followed by token i + 2, here by `choice [N]`; what comes only later
        in `ids [B, L]` has not joined yet.
        """
        reached = self.is_usual[choice]
        if not self.prompted:
            return reached
        unusual = (~reached).nonzero()[:, 0]
        sequence, last = (part[unusual] for part in rows.nonzero(as_tuple=True))
        places = torch.arange(ids.shape[1], device=ids.device)
        heard = (ids[sequence] == choice[unusual, None]) & (places <= last[:, None] + 1)
        return reached.index_put((unusual,), heard.any(-1))
