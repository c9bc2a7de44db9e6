"""A whole round on the device: grow the tree, score it, verify, compact, with one word to the host at its end.

It is the loop of `decoding` for drafters that can draft without the host: shapes are fixed, every decision stays a
tensor, and the next round reads what the last one wrote. On a GPU a round is captured once as a CUDA graph and
replayed, vanilla's as well, so that neither side pays for launches; on the CPU the same code runs as it stands.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from fspad_bench.core.loop import Context, Generation, Limit, Scores
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.engine.gpu import Kernels
from fspad_bench.engine.gpu.tensors import Law, Nodes, Walk
from fspad_bench.engine.target import TransformersTarget


@dataclass
class Round:
    """What passes from part to part, and from a round to the next; written in place, so that a replay finds it.

    `length` int32 `[1]` counts the target's committed rows: all tokens but the last. `features [N, d]` and `walk` are
    of the last tree, `nodes`, whose accepted path was committed.
    """

    nodes: Nodes
    length: Tensor
    features: Tensor
    walk: Walk
    law: Law

    @classmethod
    def of(cls, target: TransformersTarget, size: int) -> Round:
        """Room for trees of `size` nodes."""
        device = target.device
        nodes = Nodes.of(Tree.root(0), device, size)
        features = torch.zeros(size, target.config.hidden_size, dtype=target.dtype, device=device)
        numbers = [torch.zeros(n, dtype=torch.int32, device=device) for n in (1, size, 1, 1)]
        return cls(nodes, numbers[0], features, Walk(*numbers[1:]), Law.of(Sampler(), device))

    def begin(self, tokens: int, bonus: int, features: Tensor, law: Law) -> None:
        """After a prefill of so many tokens: as if a tree of the last one alone had been committed."""
        self.length.fill_(tokens)
        self.features[0] = features[-1]
        self.walk.path.zero_()
        self.walk.count.fill_(1)
        self.walk.bonus.fill_(bonus)
        self.law.words.copy_(law.words)
        self.law.numbers.copy_(law.numbers)


class Grower(Protocol):
    """What drafts on the device: trees of `nodes` nodes, of which `drafted` are guesses; dead ones fill them up."""

    nodes: int
    drafted: int

    def begin(self, context: Context, scores: Scores, capacity: int) -> None:
        """After the prefill; the target's cache has room for `capacity` rows."""

    def grow(self, round_: Round, sampled: bool) -> None:
        """Write the next tree to `round_.nodes`, rooted in the last bonus token."""


class Alone:
    """Vanilla's: the last token, and nothing drafted."""

    nodes = 1
    drafted = 0

    def begin(self, context: Context, scores: Scores, capacity: int) -> None:
        pass

    def grow(self, round_: Round, sampled: bool) -> None:
        round_.nodes.tokens.copy_(round_.walk.bonus)


class Still:
    """Leaves the nodes as they are: for what a round of so many costs."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.drafted = nodes - 1

    def begin(self, context: Context, scores: Scores, capacity: int) -> None:
        pass

    def grow(self, round_: Round, sampled: bool) -> None:
        pass


class Replay:
    """Work that is run as it stands the first time, captured as a CUDA graph the second, and replayed from then on."""

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self.work = work
        self.graph = None
        self.runs = 0
        self.captures = device.type == "cuda"

    def __call__(self) -> None:
        if self.captures and self.runs == 1:  # kernels are compiled by now; capturing runs nothing
            self.graph = self._captured()
        self.runs += 1
        if self.graph:
            self.graph.replay()
        else:
            self.work()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """No garbage is collected meanwhile: the end of another graph would end this capture."""
        torch.cuda.synchronize()
        gc.collect()
        gc.disable()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.work()
        finally:
            gc.enable()
        return graph


class DeviceLoop:
    """Generates with a grower's trees on a target that has kernels; greedy and sampled, any law, token for token as
    `decoding.generate` does with `match`."""

    def __init__(self, target: TransformersTarget, grower: Grower) -> None:
        self.target = target
        self.grower = grower
        self.kernels: Kernels = target.kernels
        self.round = Round.of(target, grower.nodes)
        self.own = torch.arange(grower.nodes, device=target.device)
        self.said = torch.zeros(grower.nodes + 2, dtype=torch.int32, device=target.device)
        self.replays: dict[tuple[bool, bool, bool], Replay] = {}
        self.rows: Tensor | None = None

    @torch.inference_mode()
    def generate(self, sampler: Sampler, prompt: Sequence[int], limit: Limit) -> Generation:
        """Decode until `limit`; the host is told a round's tokens and nothing else."""
        start = perf_counter()
        target = self.target
        scores = target.prefill(prompt, limit.max_new_tokens)
        target.synchronize()
        ready = perf_counter()
        before = target.forwards
        context = Context(list(prompt), len(prompt), sampler)
        committed = []
        context.tokens.append(sampler.next(scores.logits[-1], context.position))
        rows = len(prompt)
        if not limit.reached(context):
            replay = self.begin(context, scores, sampler)
        while not limit.reached(context):
            replay()
            target.forwards += 1
            count, bonus, *path = self.said.tolist()  # the round's one synchronisation
            rows += count
            kept = limit.cut(context, [*path[1:count], bonus])
            context.tokens += kept
            committed.append(len(kept))
        target.cache.rewind(rows)  # as the device left it
        target.synchronize()
        return Generation(
            tokens=context.new_tokens,
            prefill_seconds=ready - start,
            decode_seconds=perf_counter() - ready,
            forwards=target.forwards - before,
            committed=committed,
            drafted=[self.grower.drafted] * len(committed),
        )

    @torch.inference_mode()
    def begin(self, context: Context, scores: Scores, sampler: Sampler) -> Replay:
        """The round that goes on after a prefill and its first token, to be called as often as it is needed."""
        target = self.target
        law = Law.of(sampler, target.device)
        self.grower.begin(context, scores, target.cache.capacity)
        self.round.begin(context.prompt_length, context.tokens[-1], scores.features, law)
        if (
            self.rows is not target.cache.rows
        ):  # another cache: what was captured wrote to the old one
            self.rows = target.cache.rows
            self.replays.clear()
        if law.kind not in self.replays:
            own = Law(self.round.law.words, self.round.law.numbers, *law.kind)
            self.replays[law.kind] = Replay(lambda: self._round(own), target.device)
        return self.replays[law.kind]

    def _round(self, law: Law) -> None:
        round_ = self.round
        target = self.target
        kernels = self.kernels
        self.grower.grow(round_, law.sampled)
        nodes = round_.nodes
        length = round_.length
        rows = target.cache.rows
        positions = length + nodes.depths.clamp(min=0)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = rows[layer]
            keys.index_copy_(1, length + self.own, key)
            values.index_copy_(1, length + self.own, value)
            return kernels.attend(query, keys, values, nodes.bits, length, target.lean.scaling)

        rope = target.lean.rope_at(positions, target.cache.capacity)
        features = target.lean(nodes.tokens.clamp(min=0), rope, target.lean.rotating(attend))
        choice = kernels.choose(target.logits(features), nodes.depths, length + 1, law)
        walk = kernels.walk(nodes, choice)
        kernels.compact(rows, length, walk)
        for kept, new in zip(round_.walk, walk, strict=True):
            kept.copy_(new.view(kept.shape))
        round_.features.copy_(features)
        length += walk.count
        self.said.copy_(
            torch.cat([walk.count.view(1), walk.bonus.view(1).int(), nodes.tokens[walk.path]])
        )


def repeated(target: TransformersTarget, tree: Tree, prompt: Sequence[int]) -> Callable[[], None]:
    """The round of this tree behind a prompt, time after time: forward, verification and compaction."""
    loop = DeviceLoop(target, Still(len(tree)))
    context = Context([*prompt, tree.tokens[0]], len(prompt))
    replay = loop.begin(context, target.prefill(prompt, len(tree)), Sampler())
    for held, new in zip(loop.round.nodes, Nodes.of(tree, target.device), strict=True):
        held.copy_(new)

    @torch.inference_mode()
    def run() -> None:
        loop.round.length.fill_(len(prompt))
        replay()

    return run


@torch.inference_mode()
def replayed(
    loop: DeviceLoop, prompt: Sequence[int], sampler: Sampler
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A round behind a prompt and its drafting alone, each to be run time after time."""
    target = loop.target
    grower = loop.grower
    scores = target.prefill(prompt, grower.nodes)
    context = Context(list(prompt), len(prompt), sampler)
    context.tokens.append(sampler.next(scores.logits[-1], context.position))
    whole = loop.begin(context, scores, sampler)
    draft = Replay(lambda: grower.grow(loop.round, bool(sampler.temperature)), target.device)

    def again(replay: Replay) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            loop.round.length.fill_(len(prompt))
            replay()

        return run

    return again(whole), again(draft)


def device_loop(target: object, decoder: object) -> DeviceLoop | None:
    """The loop on the device, where the target has kernels and the decoder a grower."""
    grower = getattr(decoder, "grower", None)
    if not (grower and isinstance(target, TransformersTarget) and target.kernels):
        return None
    return DeviceLoop(target, grower)
