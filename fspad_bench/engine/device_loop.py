"""The loop on a device: a whole step, drafting included, without the host, which reads its tokens
at the end.

- It is the loop of `core.loop` for drafters that can draft without the host: shapes are fixed,
  every decision stays a tensor, and the next step reads what the last one wrote.
- On a GPU a step is captured once as a CUDA graph and replayed, vanilla's as well, so that neither
  side pays for launches; on the CPU the same code runs as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from fspad_bench.core.forwards import Forwards
from fspad_bench.core.protocols import Context, Generation, Limit, Scores
from fspad_bench.core.sampling import NotFiniteError, Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.gpu.backend import KernelAttention
from fspad_bench.engine.gpu.replay import Replay
from fspad_bench.engine.gpu.tensors import Nodes, SamplerTensors, Walk
from fspad_bench.engine.session import Session
from fspad_bench.engine.target import TransformersTarget


@dataclass
class DeviceState:
    """The state between two steps; written in place, so that a replay finds it.

    `length` int32 `[1]` counts the target's committed entries: all tokens but the last. `features
    [N, d]` (`[N, k d]` where k hidden states are captured) and `walk` belong to the last tree,
    `nodes`, whose accepted path was committed.
    """

    nodes: Nodes
    length: Tensor
    features: Tensor
    walk: Walk
    sampling: SamplerTensors

    @classmethod
    def of(
        cls, target: TransformersTarget, size: int, capture: tuple[int, ...] = ()
    ) -> DeviceState:
        """Allocate a state for trees of `size` nodes."""
        device = target.device
        nodes = Nodes.of(Tree.root(0), device, size)
        width = max(1, len(capture)) * target.config.hidden_size
        features = torch.zeros(size, width, dtype=target.dtype, device=device)
        length, path, count, bonus = (
            torch.zeros(n, dtype=torch.int32, device=device) for n in (1, size, 1, 1)
        )
        return cls(
            nodes, length, features, Walk(path, count, bonus), SamplerTensors.of(Sampler(), device)
        )

    def begin(self, length: int, bonus: int, features: Tensor, sampling: SamplerTensors) -> None:
        """Start behind a prefill of `length` tokens, as a committed tree of the last one would."""
        self.length.fill_(length)
        self.features[0] = features[-1]
        self.walk.path.zero_()
        self.walk.count.fill_(1)
        self.walk.bonus.fill_(bonus)
        self.sampling.words.copy_(sampling.words)
        self.sampling.numbers.copy_(sampling.numbers)


class DeviceDrafter(Protocol):
    """Drafts on the device: trees of `nodes` nodes, padded, of which `drafted` are guesses.

    `capture`: the hidden states that the target's features hold; empty: the final one.
    """

    nodes: int
    drafted: int
    capture: tuple[int, ...]

    def begin(self, context: Context, scores: Scores, slots: int) -> None:
        """Start a generation after the prefill; the target's cache has so many slots."""

    def draft(self, state: DeviceState, sampled: bool) -> None:
        """Write the next tree, rooted in the last bonus token, to `state.nodes`."""


class NoDraft:
    """Vanilla's: the last token, and nothing drafted."""

    nodes = 1
    drafted = 0
    capture: tuple[int, ...] = ()

    def begin(self, context: Context, scores: Scores, slots: int) -> None:
        pass

    def draft(self, state: DeviceState, sampled: bool) -> None:
        state.nodes.tokens.copy_(state.walk.bonus)


class FixedNodes:
    """Leaves the nodes as they are: to time a step of a given tree."""

    capture: tuple[int, ...] = ()

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.drafted = nodes - 1

    def begin(self, context: Context, scores: Scores, slots: int) -> None:
        pass

    def draft(self, state: DeviceState, sampled: bool) -> None:
        pass


class DeviceLoop:
    """Generates with a device drafter's trees on a target that has kernels.

    Greedy and sampled, with any cuts, token for token what `core.loop.generate` gives with `match`.
    """

    def __init__(self, target: TransformersTarget, drafter: DeviceDrafter) -> None:
        if not isinstance(target.attention, KernelAttention) or target.fused is None:
            raise ValueError(f"{target.name} has no kernels: its steps are run by the host")
        self.target = target
        self.fused = target.fused
        self.drafter = drafter
        self.attention = target.attention
        self.kernels = target.attention.kernels
        self.state = DeviceState.of(target, drafter.nodes, drafter.capture)
        self.places = torch.arange(drafter.nodes, device=target.device)
        # what the host reads of a step: count, bonus, whether logits are broken, the path's tokens
        self.report = torch.zeros(drafter.nodes + 3, dtype=torch.int32, device=target.device)
        self.replays: dict[tuple[bool, bool, bool], Replay] = {}
        self.entries: Tensor | None = None
        self.rope = self.fused.rope.table

    @torch.inference_mode()
    def generate(self, sampler: Sampler, prompt: Sequence[int], limit: Limit) -> Generation:
        """Decode until `limit`, with one device-to-host sync a step. Raises NotFiniteError.

        ValueError for a sampler that only the host can choose by.
        """
        if sampler.on_host:
            raise ValueError("logits processors and min-p run on the host alone")
        start = perf_counter()
        target = self.target
        forwards = Forwards(target)
        committed: list[int] = []
        capacity = len(prompt) + limit.max_new_tokens
        with target.session(capacity, capture=self.drafter.capture) as session:
            scores = session.prefill(prompt)
            target.synchronize()
            ready = perf_counter()
            forwards.prefilled()
            context = Context(list(prompt), len(prompt), sampler)
            context.tokens.append(sampler.next(scores.logits[-1], context.position))
            if not limit.reached(context):
                replay = self.begin(session, context, scores, sampler)
            while not limit.reached(context):
                replay()
                count, bonus, broken, *path = self.report.tolist()  # the one sync of the step
                if broken:
                    raise NotFiniteError(context.position)
                session.advance(count)
                kept = limit.cut(context, [*path[1:count], bonus])
                context.tokens += kept
                committed.append(len(kept))
            target.synchronize()
            done = perf_counter()
        return Generation(
            tokens=context.new_tokens,
            prefill_seconds=ready - start,
            decode_seconds=done - ready,
            forwards=forwards.decoding,
            committed=committed,
            drafted=[self.drafter.drafted] * len(committed),
            prefill_forwards=forwards.prefill,
        )

    @torch.inference_mode()
    def begin(self, session: Session, context: Context, scores: Scores, sampler: Sampler) -> Replay:
        """Return the step that goes on after a prefill and its first token, to be called as often
        as needed.
        """
        cache = session.cache
        sampling = SamplerTensors.of(sampler, self.target.device)
        self.drafter.begin(context, scores, cache.slots)
        self.state.begin(context.prompt_length, context.tokens[-1], scores.features, sampling)
        if self.entries is not cache.entries:  # a graph writes to the cache it was captured with
            self.entries = cache.entries
            # held: a longer session may replace the table that graphs read
            self.rope = self.fused.rope.below(cache.slots)
            self.replays.clear()
        if sampling.kind not in self.replays:
            held = self.state.sampling
            own = SamplerTensors(held.words, held.numbers, *sampling.kind)
            self.replays[sampling.kind] = Replay(lambda: self._step(cache, own), self.target.device)
        return self.replays[sampling.kind]

    def _step(self, cache: KVCache, sampling: SamplerTensors) -> None:
        state = self.state
        self.drafter.draft(state, sampling.sampled)
        nodes = state.nodes
        length = state.length
        positions = length + nodes.depths.clamp(min=0)
        rope = self.rope[:, positions]
        attend = self.attention.at(cache, nodes.bits, length, length + self.places)
        tokens = nodes.tokens.clamp(min=0)
        features, captured = self.fused(tokens, rope, attend, capture=self.drafter.capture)
        logits = self.target.logits(features)
        choice = self.kernels.choose(logits, nodes.depths, length + 1, sampling)
        walk = self.kernels.walk(nodes, choice)
        self.kernels.compact(cache.entries, length, walk)
        for kept, new in zip(state.walk, walk, strict=True):
            kept.copy_(new.view(kept.shape))
        state.features.copy_(torch.cat(captured, dim=-1) if captured else features)
        length += walk.count
        broken = walk.broken(logits).view(1)
        words = [walk.count.view(1), walk.bonus.view(1).int(), broken, nodes.tokens[walk.path]]
        self.report.copy_(torch.cat(words))


def runs_on_device(target: object) -> bool:
    """Whether whole steps can run on the target's device."""
    return isinstance(target, TransformersTarget) and isinstance(target.attention, KernelAttention)


def repeated(target: TransformersTarget, tree: Tree, prompt: Sequence[int]) -> Callable[[], None]:
    """Return a step of this tree behind a prompt, to be run again and again.

    It consists of the forward, verification and compaction.
    """
    loop = DeviceLoop(target, FixedNodes(len(tree)))
    session = target.session(len(prompt) + len(tree))
    context = Context([*prompt, tree.tokens[0]], len(prompt))
    replay = loop.begin(session, context, session.prefill(prompt), Sampler())
    for held, new in zip(loop.state.nodes, Nodes.of(tree, target.device), strict=True):
        held.copy_(new)
    return _from_length(loop, len(prompt), replay)


@torch.inference_mode()
def replayed(
    loop: DeviceLoop, prompt: Sequence[int], sampler: Sampler
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a step behind a prompt, and its drafting alone, each to be run again and again."""
    target = loop.target
    session = target.session(len(prompt) + loop.drafter.nodes, capture=loop.drafter.capture)
    scores = session.prefill(prompt)
    context = Context(list(prompt), len(prompt), sampler)
    context.tokens.append(sampler.next(scores.logits[-1], context.position))
    whole = loop.begin(session, context, scores, sampler)
    draft = Replay(lambda: loop.drafter.draft(loop.state, not sampler.greedy), target.device)
    return _from_length(loop, len(prompt), whole), _from_length(loop, len(prompt), draft)


def _from_length(loop: DeviceLoop, length: int, replay: Replay) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        loop.state.length.fill_(length)
        replay()

    return run
