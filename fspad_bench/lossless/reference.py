"""Slow references that share no code with the engine, to compare it with directly.

- `Reference` runs a precise copy of the model by transformers' own forward: float64 where the
  target is small, float32 otherwise, a dense mask, no cache. Mask and positions are found by
  walking each node's parents. Of a target whose weights several processes share, each path is a
  text of its own.
- `attend` is the textbook soft-max in float64.
- Trees are made here as well: random ones of a given size and depth.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fspad_bench.benchmark.audit import SMALL
from fspad_bench.core.tree import Tree
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.team import Precise
from fspad_bench.lossless.checks import worst_of

DEEPEST = 16  # drafted tokens on the longest path


class Reference:
    """The target's weights in a precise copy that is made when first needed.

    With `keep`, logits are kept for the next time that they are asked for. A `twin` is the
    reference of another target with the same weights: copy and logits are shared.
    """

    def __init__(
        self, target: TransformersTarget, *, keep: bool = False, twin: Reference | None = None
    ) -> None:
        self.target = target
        self.keep = keep
        self._model: PreTrainedModel | None = twin.model if twin else None
        self._precise: Precise | None = None
        self._known: dict[tuple[object, ...], list[Tensor]] = twin._known if twin else {}

    def serves(self, target: TransformersTarget) -> bool:
        """Return whether another target on the same device has the same weights."""
        if self.target.team is not target.team:
            return False
        ours = self.target.model.state_dict()
        other = target.model.state_dict()
        return ours.keys() == other.keys() and all(
            weight.dtype == other[name].dtype
            and weight.device == other[name].device
            and torch.equal(weight, other[name])
            for name, weight in ours.items()
        )

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            self._model = copy.deepcopy(self.target.model).to(self._dtype)
            self._model.set_attn_implementation("sdpa")
        return self._model

    @property
    def _dtype(self) -> torch.dtype:
        parameters = sum(p.numel() for p in self.target.model.parameters())
        return torch.float64 if parameters < SMALL else torch.float32

    @torch.inference_mode()
    def logits(self, prefix: Sequence[int], trees: Sequence[Tree]) -> list[Tensor]:
        """Return the logits `[N, V]` of each tree behind `prefix`."""
        key = (tuple(prefix), *(tuple(tree.tokens) + tuple(tree.parents) for tree in trees))
        if key in self._known:
            return self._known[key]
        one_by_one = self.target.team.size > 1
        logits = (self._texts if one_by_one else self._forward)(prefix, trees)
        if self.keep:
            self._known[key] = logits
        return logits

    def _texts(self, prefix: Sequence[int], trees: Sequence[Tree]) -> list[Tensor]:
        """Return what `logits` does, from the text of each node's path: where several processes
        share the weights, none of them is handed a mask.
        """
        if self._precise is None:
            self._precise = self.target.team.precise(self.target.model, self._dtype)
        return [self._by_leaf(self._precise, prefix, tree) for tree in trees]

    @staticmethod
    def _by_leaf(precise: Precise, prefix: Sequence[int], tree: Tree) -> Tensor:
        rows: dict[int, Tensor] = {}
        for leaf in set(range(len(tree))) - set(tree.parents):
            line = path_to(tree, leaf)
            text = [*prefix, *(tree.tokens[node] for node in line)]
            rows |= zip(line, precise.logits(text, len(prefix)), strict=True)
        return torch.stack([rows[node] for node in range(len(tree))])

    def _forward(self, prefix: Sequence[int], trees: Sequence[Tree]) -> list[Tensor]:
        device = self.target.device
        tokens = [*prefix, *(token for tree in trees for token in tree.tokens)]
        positions = list(range(len(prefix)))
        visible = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
        visible[: len(prefix), : len(prefix)] = True
        visible = visible.tril()
        visible[len(prefix) :, : len(prefix)] = True
        start = len(prefix)
        for tree in trees:
            for node in range(len(tree)):
                line = path_to(tree, node)
                positions.append(len(prefix) + len(line) - 1)
                visible[start + node, [start + other for other in line]] = True
            start += len(tree)
        hidden = self.model.base_model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            attention_mask=windowed_masks(self.model, visible.to(device), positions),
            use_cache=False,
        ).last_hidden_state[0]
        logits = self.model.get_output_embeddings()(hidden[len(prefix) :])
        return list(logits.split([len(tree) for tree in trees]))


def windowed_masks(
    model: PreTrainedModel, visible: Tensor, positions: Sequence[int]
) -> Tensor | dict[str, Tensor]:
    """Return the masks of tokens at `positions` that transformers takes as they are, bool
    `[1, 1, L, L]`; one for each type of layer where it has several.

    `visible [L, L]`: which of the others each token sees but for windows.
    """
    window = getattr(model.config, "sliding_window", None)
    at = torch.tensor(positions, device=visible.device)
    full = visible[None, None]
    near = full if window is None else full & (at > at[:, None] - window)
    first = model.base_model.layers[0].self_attn
    if hasattr(first, "sliding_window"):
        return {"full_attention": full, "sliding_attention": near}
    return near if model.config.model_type == "mistral" else full


def path_to(tree: Tree, node: int) -> list[int]:
    """Return the nodes from the root to `node`, found by walking the parents."""
    line = [node]
    while line[-1]:
        line.append(tree.parents[line[-1]])
    return line[::-1]


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tree: Tree,
    length: int,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Return what each node attends to, `[N, H D]` in float64.

    query `[N, H, D]`; keys and values `[H_kv, length + N, D]`: the prefix, then the nodes. With a
    window a node sees the last so many entries of its path alone.
    """
    groups = query.shape[1] // keys.shape[0]
    wide_keys, wide_values = (x.double().repeat_interleave(groups, dim=0) for x in (keys, values))
    visible = torch.zeros(len(tree), keys.shape[1], dtype=torch.bool)
    for node in range(len(tree)):
        seen = [*range(length), *(length + other for other in path_to(tree, node))]
        visible[node, seen[-window:] if window else seen] = True
    scores = torch.einsum("nhd,hcd->nhc", query.double(), wide_keys) * scale
    scores = scores.masked_fill(~visible[:, None].to(scores.device), -math.inf)
    return torch.einsum("nhc,hcd->nhd", scores.softmax(-1), wide_values).flatten(1)


def relative_error(ours: Tensor, right: Tensor) -> float:
    """Return the largest difference over the largest value of `right`; infinite where any number is
    not finite.
    """
    error = (ours.double() - right.double()).abs().max() / right.double().abs().max()
    return worst_of([float(error)])


def random_tokens(dice: random.Random, count: int, vocabulary: int) -> list[int]:
    return [dice.randrange(vocabulary) for _ in range(count)]


def bushy_tree(dice: random.Random, nodes: int, vocabulary: int, depth: int = DEEPEST) -> Tree:
    """Return a random tree of `nodes` nodes whose deepest has `depth` ancestors, or as many as fit.

    The deep path is spread over the tree, so that it leads through the first and the last nodes.
    """
    tokens = [dice.randrange(vocabulary)]
    parents = [-1]
    depths = [0]
    taken: set[tuple[int, int]] = set()
    deep = 0  # the last node of the deep path
    while len(tokens) < nodes:
        left = min(depth, nodes - 1) - depths[deep]
        is_deep = left and dice.random() < left / (nodes - len(tokens))
        shallow = [node for node in range(len(tokens)) if depths[node] < depth]
        parent = deep if is_deep else dice.choice(shallow)
        token = dice.randrange(vocabulary)
        if (parent, token) in taken:
            continue
        taken.add((parent, token))
        if is_deep:
            deep = len(tokens)
        tokens.append(token)
        parents.append(parent)
        depths.append(depths[parent] + 1)
    return Tree(tokens, parents)
