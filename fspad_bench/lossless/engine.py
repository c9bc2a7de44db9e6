"""The engine that will run, compared directly with slow references (`reference`).

- Subjects are targets: the one at hand in its precision, on its device, with its compiled step or
  kernels; and small ones of shapes that these serve (`engines`).
- Sizes lie at the edges: trees of 1 to 128 nodes around words of 64 bits, paths of every length,
  prefixes around the blocks of the kernels and beyond 1,024 and 2,048, up to the context.
- A compiled step promises a node the bits that its path gets one token at a time; there a
  difference of one bit fails.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fspad_bench.core.tree import Tree
from fspad_bench.engine.architecture import rope_types
from fspad_bench.engine.attention import HeadShape, Pending
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.gpu.tensors import Walk
from fspad_bench.engine.session import LARGEST_TREE, Session
from fspad_bench.engine.target import DEVICE_GAP, FUSED_GAP, TransformersTarget
from fspad_bench.engine.together import keeps_bits
from fspad_bench.lossless.checks import ELSEWHERE, Check, worst_of
from fspad_bench.lossless.reference import (
    DEEPEST,
    Reference,
    attend,
    bushy_tree,
    path_to,
    random_tokens,
    relative_error,
)

ROPE_BOUND = {
    torch.float64: 1e-6,
    torch.float32: 1e-6,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}
ATTENTION_BOUND = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 0.015,
    torch.float16: 0.003,
}
SPREAD = 4.0  # deviation of the scores of attention: a scale that is 1.03 too large shows
EDGE_NODES = (62, 63, 64, 65, 126, 127)
STARTS = (0, 1, 63, 127, 128, 1023, 1025, 2049)
COMPACTIONS = 4  # random paths of each length


@dataclass(frozen=True)
class Sizes:
    """The parts of the engine that an effort looks at.

    `nodes` of trees; `prefixes` of whole forwards; `lengths` of the attention alone.
    """

    nodes: tuple[int, ...]
    prefixes: tuple[int, ...]
    lengths: tuple[int, ...]

    def within(self, target: TransformersTarget) -> Sizes:
        """Return the sizes that fit the target's context, and the context's end.

        Where no prefix fits, the longest that does.
        """
        end = target.max_length - LARGEST_TREE
        prefixes = tuple(n for n in self.prefixes if n < end) or (max(1, end - 1),)
        lengths = tuple(n for n in self.lengths if n < end)
        return Sizes(self.nodes, prefixes, (*lengths, end))


FEW = Sizes(
    nodes=(1, 2, 63, 64, 65, 127, 128),
    prefixes=(1, 127, 1030, 2060),
    lengths=(1, 127, 129, 1026, 2050),
)
MANY = Sizes(
    nodes=(1, 2, 3, 17, 63, 64, 65, 127, 128),
    prefixes=(1, 2, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257, 1023, 1025, 2047, 2049, 3000),
    lengths=(
        *(1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513),
        *(1023, 1024, 1025, 2047, 2048, 2049, 3000, 4095, 4097),
    ),
)


ALL = replace(MANY, prefixes=(*MANY.prefixes, 4097, 8000))
ONE = Sizes(nodes=(65,), prefixes=(1100,), lengths=())


def forward_bound(target: TransformersTarget) -> float:
    """Return how far logits may lie from the reference, relative to the largest."""
    bound = FUSED_GAP[target.dtype]
    return bound if target.device.type == "cpu" else max(bound, DEVICE_GAP)


def check_positions(target: TransformersTarget) -> float:
    """Return the largest error of the rotary table, against transformers' module position by
    position, at the edges of blocks and over the whole context.
    """
    assert target.fused is not None
    module = target.model.base_model.rotary_emb
    kinds = rope_types(target.config)
    size = target.max_length
    edges = [p + d for p in (64, 128, 256, 1024, 2048, 4096, size - 2) for d in (-1, 0, 1)]
    asked = [[p] for p in edges if p < size]
    asked += [[p, p + 1, p + 1, p + 2, p + 2] for p in edges if p + 2 < size]
    asked += [list(range(0, size, 7)), list(range(size - LARGEST_TREE, size))]
    errors = []
    for positions in asked:
        ours = target.fused.rope.of(positions)
        at = torch.tensor([positions], device=ours.device)
        for layer, kind in enumerate(kinds or [None]):
            cos, sin = module(target.embedding.weight[:1], at, *([kind] if kind else []))
            half = sin.shape[-1] // 2
            right = torch.cat([cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)])
            errors.append(relative_error(target.fused.rope.part(ours, layer), right))
    return worst_of(errors)


@torch.inference_mode()
def check_attention(target: TransformersTarget, lengths: Sequence[int]) -> float:
    """Return the largest error of the tree attention, against the soft-max in float64.

    Random keys behind every one of `lengths`, a tree of another size at each, in the last layer of
    every window; scores spread so far
    that a few keys of any place outweigh the others.
    """
    errors = []
    windows = [target.heads.window(layer) for layer in range(target.config.num_hidden_layers)]
    layers = {window: layer for layer, window in enumerate(windows)}.values()
    for number, length in enumerate(lengths):
        dice = random.Random(length)
        nodes = (1, 5, 64, 65, 128)[number % 5] if length > 1 else 5
        tree = bushy_tree(dice, nodes, 97)
        errors += [_attention_error(target, tree, length, layer) for layer in layers]
    return worst_of(errors)


def _attention_error(target: TransformersTarget, tree: Tree, length: int, layer: int) -> float:
    shape = target.heads
    dtype = target.dtype
    generator = torch.Generator().manual_seed(length)

    def some(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(target.device, dtype)

    rows = some(len(tree), shape.heads + 2 * shape.kv_heads, shape.dim)
    rows[:, : shape.heads] *= SPREAD
    _look_at_ancestors(rows, tree, shape)
    rope = torch.zeros(2, len(tree), shape.dim, device=target.device, dtype=dtype)
    rope[0] = 1  # turns nothing
    devices = [target.device] * (layer + 1)
    cache = KVCache(devices, shape.kv_heads, length + len(tree), shape.dim, dtype)
    for entries in (cache.keys[layer], cache.values[layer]):
        entries[:, :length] = some(shape.kv_heads, length, shape.dim)
    pending = Pending(length, tree.ancestry, len(tree))
    ours = target.attention.tree(cache, pending)(layer, rows, rope)
    keys, values = (x[:, :length] for x in (cache.keys[layer], cache.values[layer]))
    query, key, value = rows.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    keys = torch.cat([keys, key.transpose(0, 1)], dim=1)
    values = torch.cat([values, value.transpose(0, 1)], dim=1)
    window = shape.window(layer)
    return relative_error(ours, attend(query, keys, values, tree, length, shape.scaling, window))


def _look_at_ancestors(rows: Tensor, tree: Tree, shape: HeadShape) -> None:
    """Turn each node's queries to the key of one of its ancestors, of another depth for each node.

    A single key among thousands would not show if it were left out.
    """
    keys = rows[:, shape.heads : shape.heads + shape.kv_heads].repeat_interleave(shape.groups, 1)
    for node in range(len(tree)):
        line = path_to(tree, node)
        seen = keys[line[node % len(line)]]
        rows[node, : shape.heads] += seen * (2.5 * SPREAD * shape.dim**-0.5)


@dataclass
class TreeErrors:
    """Errors of a tree's logits: from the reference, and from the same path one token at a time."""

    reference: float = 0.0
    single: float = 0.0
    bits: bool = True


def tree_errors(reference: Reference, sizes: Sizes) -> TreeErrors:
    """Score random trees of every size behind random prefixes of every length."""
    return list(_tree_errors(reference, sizes))[-1]


def trees_hold(reference: Reference, sizes: Sizes) -> bool:
    """Return whether all these trees hold; the first that does not ends the search."""
    return all(scores_hold(reference.target, found) for found in _tree_errors(reference, sizes))


@torch.inference_mode()
def _tree_errors(reference: Reference, sizes: Sizes) -> Iterator[TreeErrors]:
    """Yield the errors so far after each tree."""
    target = reference.target
    vocabulary = target.config.vocab_size
    found = TreeErrors()
    for length in sizes.prefixes:
        dice = random.Random(length)
        prefix = random_tokens(dice, length, vocabulary)
        trees = [bushy_tree(dice, nodes, vocabulary) for nodes in sizes.nodes]
        expected = reference.logits(prefix, trees)
        with target.session(length + DEEPEST + 1) as session:
            session.prefill(prefix)
            for tree, right in zip(trees, expected, strict=True):
                ours = session.score(tree).logits
                session.rollback()
                found.reference = worst_of([found.reference, relative_error(ours, right)])
                _compare_with_single(session, tree, ours, found)
                yield found


def _compare_with_single(session: Session, tree: Tree, ours: Tensor, found: TreeErrors) -> None:
    lines = _edge_paths(tree)
    alone = one_at_a_time(session, tree, lines)
    for line in lines:
        together = ours[line]
        right = torch.stack([alone[node] for node in line])
        found.bits &= torch.equal(right, together)
        found.single = worst_of([found.single, relative_error(together, right)])


def _edge_paths(tree: Tree) -> list[list[int]]:
    """Return the deepest path, and those to nodes at the edges of words that it leaves out."""
    deepest = max(range(len(tree)), key=lambda node: tree.depths[node])
    lines = [path_to(tree, deepest)]
    for node in EDGE_NODES:
        if node < len(tree) and all(node not in line for line in lines):
            lines.append(path_to(tree, node))
    return lines


def one_at_a_time(session: Session, tree: Tree, lines: Iterable[list[int]]) -> dict[int, Tensor]:
    """Return the logits `[V]` of nodes whose tokens are committed one by one along each line.

    What two lines share is run once. All tokens are taken back at the end.
    """
    length = session.length
    rows: dict[int, Tensor] = {}
    held: list[int] = []
    for line in sorted(lines):
        shared = len({*held} & {*line})  # paths from the root part once
        session.rewind(length + shared)
        for node in line[shared:]:
            rows[node] = session.score(Tree.root(tree.tokens[node])).logits[0].clone()
            session.commit([0])
        held = line
    session.rewind(length)
    return rows


@torch.inference_mode()
def wrong_compactions(target: TransformersTarget) -> list[int]:
    """Return the lengths of paths, 1 to 17, whose entries are not where they belong after `keep`.

    Every entry of every layer is compared, those before the path as well.
    """
    dice = random.Random(17)
    wrong = set()
    starts = [start for start in STARTS if start + LARGEST_TREE < target.max_length]
    with target.session(max(starts)) as session:
        cache = session.cache
        generator = torch.Generator().manual_seed(17)
        originals = [torch.rand(part.shape, generator=generator).to(part) for part in cache.parts]
        for count in range(1, DEEPEST + 2):
            for number in range(COMPACTIONS):
                start = starts[(count * COMPACTIONS + number) % len(starts)]
                path = _random_path(dice, count)
                for part, original in zip(cache.parts, originals, strict=True):
                    part.copy_(original)
                cache.keep(start, path)
                pairs = zip(originals, cache.parts, strict=True)
                if not all(_is_compact(original, part, start, path) for original, part in pairs):
                    wrong.add(count)
                if target.kernels and not _kernel_compacts(target, originals[0], start, path):
                    wrong.add(count)
        for part in cache.parts:
            part.zero_()
    return sorted(wrong)


def _random_path(dice: random.Random, count: int) -> list[int]:
    """Return ascending nodes; the last one lies near the path's length, or anywhere."""
    end = dice.choice([count + 1, 63, 64, LARGEST_TREE])
    return sorted(dice.sample(range(end), count))


def _is_compact(before: Tensor, after: Tensor, start: int, path: Sequence[int]) -> bool:
    moved = all(
        torch.equal(after[..., start + place, :], before[..., start + node, :])
        for place, node in enumerate(path)
    )
    return moved and torch.equal(after[..., :start, :], before[..., :start, :])


def _kernel_compacts(
    target: TransformersTarget, original: Tensor, start: int, path: Sequence[int]
) -> bool:
    """Compact by the device's kernel, as its loop calls it: a path padded to the tree's nodes."""
    assert target.kernels is not None
    entries = original.clone()
    device = entries.device
    places = [*path, *[0] * (LARGEST_TREE - len(path))]
    length, count, nodes = (
        torch.tensor(x, dtype=torch.int32, device=device) for x in ([start], len(path), places)
    )
    target.kernels.compact(entries, length, Walk(nodes, count, count))
    return _is_compact(original, entries, start, path)


def check_engine(reference: Reference, sizes: Sizes, subject: str) -> list[Check]:
    """Check positions, attention, compaction and whole forwards of one target."""
    target = reference.target
    sizes = sizes.within(target)
    checks = [_compaction(target, subject), *check_forwards(reference, sizes, subject)]
    if target.fused is None:
        figure = "the model's own modules: tree scores cover them"
        return [*checks, Check("attention", subject, ELSEWHERE, figure)]
    return [_positions(target, subject), _attention(target, sizes.lengths, subject), *checks]


def _positions(target: TransformersTarget, subject: str) -> Check:
    error = check_positions(target)
    bound = ROPE_BOUND[target.dtype]
    figure = f"{error:.1e} from the model's own over {target.max_length:,} positions"
    return Check.of("positions", subject, error <= bound, figure, f"{bound:.0e}")


def _attention(target: TransformersTarget, lengths: Sequence[int], subject: str) -> Check:
    error = check_attention(target, lengths)
    bound = attention_bound(target)
    figure = f"{error:.1e} from a float64 soft-max behind up to {max(lengths):,} keys"
    return Check.of("attention", subject, error <= bound, figure, f"{bound:.0e}")


def attention_bound(target: TransformersTarget) -> float:
    """Return how far the attention may lie from the reference, relative to its largest value."""
    bound = ATTENTION_BOUND[target.dtype]
    return bound if target.device.type == "cpu" else max(bound, DEVICE_GAP)


def _compaction(target: TransformersTarget, subject: str) -> Check:
    wrong = wrong_compactions(target)
    figure = f"wrong for paths of {', '.join(map(str, wrong))}" if wrong else "paths of 1 to 17"
    return Check.of("compaction", subject, not wrong, figure, "every entry in its place")


def check_forwards(reference: Reference, sizes: Sizes, subject: str) -> list[Check]:
    """Check whole forwards: against transformers, and against one token at a time."""
    target = reference.target
    sizes = sizes.within(target)
    found = tree_errors(reference, sizes)
    bound = forward_bound(target)
    figure = f"{found.reference:.1e} from transformers, "
    figure += "bits" if found.bits else f"{found.single:.1e} from"
    figure += " of one token at a time" if found.bits else " one token at a time"
    figure += f"; up to {max(sizes.nodes)} nodes behind {max(sizes.prefixes):,} tokens"
    return [Check.of("tree scores", subject, scores_hold(target, found), figure, f"{bound:.0e}")]


def scores_hold(target: TransformersTarget, found: TreeErrors) -> bool:
    """Return whether both errors are within the bound, and bits are equal where promised."""
    bound = forward_bound(target)
    promised = found.bits or not keeps_bits(target)
    return found.reference <= bound and found.single <= bound and promised
