"""Chimera (Zeng et al. 2024, arXiv 2402.15758): a draft network that meets the target halfway.

Drafting asks for two things: what the last few tokens say, and what the whole text says. Chimera
reads the first from embeddings, the second from the target's own hidden states.

- *Tri-gram encoder*: T_t from the embeddings of tokens t-2, t-1 and t. A row near the start, where
  there are fewer, repeats the first of them.
- *Full-context encoder*: one decoder layer over [H; T]. H_i is the target's last hidden state at
  position i, T_t stands at position t, and every T sees the H and the T before it. Only T asks, so
  H takes part as keys and values; they are cached once. F_t, the layer's output at T_t, stands for
  the hidden state that the target would have there.
- *Heads*: token t + 1 is read from [H; F_t], where H is the last state that the target has
  computed. Below the root there are no new H; the same layer runs again on the drafted tokens' T.

What differs from its authors' release:

- Their K heads are LM heads of doubled width, 2 d V weights each: more than the rest of the draft.
  Here all levels share h_logit = W [H; F], behind the target's LM head: a map of rank d instead,
  which starts as theirs do, at [lm_head; lm_head]. A text's own tokens can join.
- In training a level reads the tokens of the text, not the guesses of the level before it: the path
  that counts is the one that is accepted.
- The loss is cross-entropy with the target's distribution (`chimera`); theirs, with the text's
  tokens, is `chimera-hard`. The tree is EAGLE-2's dynamic one, not a fixed one.
- Nothing of the target learns. In theirs the embeddings can receive gradients.

d is the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.fused import Fuse
from fspad_bench.drafts.network import DraftNetwork, DraftOutput, Norm
from fspad_bench.drafts.shape import Shape
from fspad_bench.engine.cpu.linear import stacked
from fspad_bench.engine.cpu.native import Native
from fspad_bench.engine.cpu.torch_ops import TorchOps


class TriGram(nn.Module):
    """T = W_out (x + silu(W x + b)),  x = [e_{t-2}; e_{t-1}; e_t].    x: [..., 3 d], T: [..., d]"""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = ChimeraNetwork.context * shape.d
        self.block = nn.Linear(width, width)
        self.out = nn.Linear(width, shape.d, bias=False)
        nn.init.zeros_(self.block.weight)
        nn.init.zeros_(self.block.bias)

    def forward(self, e: Tensor, f: Tensor) -> Tensor:
        return self.out(e + F.silu(self.block(e)))

    def fused(self, ops: Native | TorchOps) -> Fuse:
        """Return `forward` over packed weights."""
        block = stacked(self.block)
        out = stacked(self.out)
        return lambda e, f: out(e + F.silu(block(e)))


class ChimeraNetwork(DraftNetwork):
    """Tri-gram encoder -> decoder layer over [H; T] -> h_logit = W [H; F]."""

    architecture = "chimera"
    context = 3
    keeps_states = True

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.norm = Norm(shape.d, shape.eps)
        self.head = nn.Linear(2 * shape.d, shape.d, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(shape.d).repeat(1, 2))

    @classmethod
    def build_fusion(cls, shape: Shape) -> TriGram:
        return TriGram(shape)

    def enter(self, x: Tensor) -> Tensor:
        """Return norm(x): the layer has an input norm, for H and T alike."""
        return self.norm(x)

    def conclude(self, output: DraftOutput, f: Tensor) -> DraftOutput:
        """Return h_logit = W [H; F], and H, which the next draft level reads again."""
        return _concluded(self.head, output, f)

    def packed_conclude(self) -> Callable[[DraftOutput, Tensor], DraftOutput]:
        return partial(_concluded, stacked(self.head))

    def forward(self, e: Tensor, states: Tensor, rows: Tensor) -> DraftOutput:
        """Run the first draft level; h_feature is F."""
        (output,) = self.unrolled(e, states, 1)
        return DraftOutput(output.h_logit[rows], output.h_feature[rows])

    def unrolled(self, e: Tensor, states: Tensor, steps: int) -> list[DraftOutput]:
        """Run `steps` draft levels; h_feature is F.

        T depends on tokens alone, so levels differ in the states they see: row i of level j sees
        those up to row i - j.
        """
        f = self.read(states)
        x = self.fuse(self.windows(e), f)
        length = e.shape[-2]
        rope = self.rope(torch.arange(length + 1, device=e.device)).to(x.dtype)
        queries = self.enter(x)
        of_states = self.attention.keys_values(self.enter(f), rope[:, :-1])
        of_tokens = self.attention.keys_values(queries, rope[:, 1:])
        k, v = (torch.cat(parts, dim=-2) for parts in zip(of_states, of_tokens, strict=True))
        before = torch.ones(length, length, dtype=torch.bool, device=e.device).tril()
        outputs = []
        for level in range(steps):
            visible = torch.cat([before.tril(-level), before], dim=-1)
            seen = self.attention.attend(queries, rope[:, 1:], k, v, visible)
            hidden = self.output(x + seen)
            concluded = self.conclude(hidden, f.roll(level, dims=-2))
            outputs.append(concluded._replace(h_feature=hidden.h_feature))
        return outputs


def _concluded(head: Callable[[Tensor], Tensor], output: DraftOutput, f: Tensor) -> DraftOutput:
    hidden = torch.cat([f, output.h_feature], dim=-1)
    return DraftOutput(h_logit=head(hidden), h_feature=f)


class Chimera(HeadDrafter):
    """Chimera with EAGLE-2's tree. Options are those of `HeadDrafter`."""

    network = ChimeraNetwork
