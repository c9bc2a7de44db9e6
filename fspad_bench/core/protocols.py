"""What the loop, a target and a decoder promise each other.

- A `Drafter` proposes trees; the loop scores, verifies and commits them. Only `propose` must be
  written.
- An `Engine` decodes by itself (transformers' `generate`, a server) and is timed from outside.
- A `Target` opens `Session`s: one sequence's KV state each.

Everything here speaks of token ids: no text, no tasks, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import getattr_static, signature
from types import FunctionType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted, Chooser, Rule, match

Scope = Literal["prompt", "run"]
Measurements = Mapping[str, Any]


@dataclass(frozen=True)
class LayerPlan:
    """Which sublayers of a target a session runs: all but those of the layers named here."""

    skip_attention: frozenset[int] = frozenset()
    skip_mlp: frozenset[int] = frozenset()

    @property
    def whole(self) -> bool:
        return not (self.skip_attention or self.skip_mlp)


ALL = LayerPlan()


class Scores(Protocol):
    """The result of one forward over N tokens.

    `logits [N, V]` (of a prefill the last token's alone, `[1, V]`), `features [N, d]`: the hidden
    states after the final norm, or, in a session with `capture`, those of the captured layers side
    by side, `[N, k d]`.
    """

    @property
    def logits(self) -> Tensor: ...
    @property
    def features(self) -> Tensor: ...


class Session(Protocol):
    """The KV state of one sequence over a target, closed by `with`.

    `length` counts committed entries.
    """

    def __enter__(self) -> Session: ...
    def __exit__(self, *_: Any) -> None: ...

    @property
    def length(self) -> int: ...

    def prefill(self, tokens: Sequence[int]) -> Scores:
        """Start the sequence anew with these committed tokens."""

    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Scores:
        """Score more tokens; their entries are pending until a commit or a rollback.

        `parents` are numbers of pending entries, in the order in which they were added, or -1 for
        the last committed token. May be called again and again, level by level.
        """

    def score(self, tree: Tree) -> Scores:
        """Extend by a whole tree."""

    def commit(self, path: Sequence[int]) -> None:
        """Keep these pending entries, a path from a child of the last committed token down, and
        drop the others.
        """

    def rollback(self) -> None:
        """Drop all pending entries."""


class Target(Protocol):
    """A model that opens sessions. The counters are of all its sessions together, a drafter's own
    included.

    `forwards` counts forwards of the whole model, `partial_forwards` those that ran only some of
    its layers.
    """

    @property
    def forwards(self) -> int: ...
    @property
    def partial_forwards(self) -> int: ...

    def session(
        self,
        capacity: int,
        *,
        layers: LayerPlan = ALL,
        capture: Sequence[int] = (),
        share: Any = None,
    ) -> Session:
        """Open a session with room for `capacity` committed tokens."""

    def verifier(self, rule: Rule) -> Rule:
        """The rule as this target's device carries it out: the same result."""

    def synchronize(self) -> None:
        """Wait for the device."""


@dataclass
class Context:
    """All committed tokens; the last one is not in the target's cache yet.

    `sampler`: for drafters that draw, with the target's own noise or with dice of their own.
    `batch`: how many requests' trees share the target's next forward, this one's among them.
    """

    tokens: list[int]
    prompt_length: int
    sampler: Chooser | None = None
    batch: int = 1

    @property
    def position(self) -> int:
        """The absolute position of the next token."""
        return len(self.tokens)

    @property
    def greedy(self) -> bool:
        """Whether the target's choice is its likeliest token, as where no sampler is known."""
        return self.sampler is None or self.sampler.greedy

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[self.prompt_length :]


class Step(NamedTuple):
    """The result of one step, already appended to `context`.

    `seconds`: the target's forward, 0 if not measured.
    """

    context: Context
    tree: Tree
    scores: Scores
    accepted: Accepted
    seconds: float = 0.0

    @property
    def tokens(self) -> list[int]:
        """The target's answer: the accepted tokens and the bonus."""
        path = self.accepted.path[1:]
        return [*(self.tree.tokens[node] for node in path), self.accepted.bonus]


@dataclass(frozen=True)
class Limit:
    """The end of a generation: after `max_new_tokens`, with the first of `stop_ids`, or with the
    first token at which `stop` is true of the new tokens so far. What ends it is kept.

    `stop` is asked of every token in turn; it depends on the tokens alone, so that every decoder's
    output ends where vanilla's does. Raises ValueError for less than the token of the prefill.
    """

    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    stop: Callable[[Sequence[int]], bool] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: at least 1")

    def room(self, context: Context) -> int:
        """Return how many drafted tokens could still be used, the bonus token aside."""
        return self.max_new_tokens - len(context.new_tokens) - 1

    def reached(self, context: Context) -> bool:
        return len(context.new_tokens) >= self.max_new_tokens or self.stopped(context)

    def stopped(self, context: Context) -> bool:
        """Whether the last token ends the output, however long it is."""
        if context.tokens[-1] in self.stop_ids:
            return True
        return self.stop is not None and self.stop(context.new_tokens)

    def cut(self, context: Context, tokens: Sequence[int]) -> list[int]:
        """Return the leading `tokens` that still belong to the output."""
        tokens = list(tokens[: self.max_new_tokens - len(context.new_tokens)])
        if self.stop is not None:
            tokens = self._until_stop(context.new_tokens, tokens)
        ends = [i for i, token in enumerate(tokens) if token in self.stop_ids]
        return tokens[: ends[0] + 1] if ends else tokens

    def _until_stop(self, made: list[int], tokens: list[int]) -> list[int]:
        assert self.stop is not None
        for count in range(1, len(tokens) + 1):
            if self.stop(made + tokens[:count]):
                return tokens[:count]
        return tokens


@dataclass(frozen=True)
class Generation:
    """A decoder's output for one prompt. The lists have one entry a step; `tokens` starts with the
    prefill's token.

    `draft_seconds`, `score_seconds` and `verify_seconds` (of the rule) are None where they are not
    known: steps on a device, engines of others. `prefill_forwards` counts the full forwards before
    the decode clock started, 0 where that is not known; those beyond the prefill's own are part of
    `forwards`. `claims` are what a foreign engine says of itself, which nothing here has measured.
    `overshoot` counts the target's own tokens beyond the limit, which an engine made in the same
    time and which are not part of `tokens`.

    Of each step's tree, None where nothing was drafted or the host does not see it: `depths`, its
    drafted levels; `ranks`, how many earlier siblings each accepted node had, 0 for the first child
    (the path is whole, where the limit cuts `committed`); `refused`, the children of the last
    accepted node, 0 where the draft ended there.
    """

    tokens: list[int]
    prefill_seconds: float
    decode_seconds: float
    forwards: int = 0
    committed: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    draft_seconds: float | None = None
    score_seconds: float | None = None
    partial_forwards: int = 0
    prefill_forwards: int = 0
    claims: dict[str, Any] = field(default_factory=dict)
    overshoot: int = 0
    verify_seconds: float | None = None
    depths: list[int] | None = None
    ranks: list[list[int]] | None = None
    refused: list[int] | None = None


class Drafter:
    """The base class of decoders in our loop: proposes trees. Everything but `propose` has a
    default.

    A decoder is called as `Class(target, **options)`; its keyword options are what `-D
    name.option=value` sets. Its constructor measures nothing: that is `prepare`'s.
    """

    rule: Rule = match
    """How its trees are verified: `match`, `rejection`, `traversal`, or a rule of its own."""

    scope: Scope = "prompt"
    """What it learns from: `prompt` starts anew with each generation, `run` keeps what it learned
    (such rows say so).
    """

    capture: Sequence[int] = ()
    """The hidden states that `scores.features` hold, by their index in transformers'
    `output_hidden_states`.
    """

    def __init__(self, target: Any = None) -> None:
        """Take nothing of the target. Options are keyword arguments of a constructor of one's
        own.
        """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("rule")
        if isinstance(own, FunctionType):  # it would be bound to the instance as a method
            if len(signature(own).parameters) != 4:
                raise TypeError(f"{cls.__name__}.rule takes (tree, logits, sampler, position)")
            cls.rule = Rule(own)

    def settings(self) -> dict[str, Any]:
        """Return what really runs: options resolved, files by their hashes. Part of a row's key."""
        return {}

    def prepare(self, target: Any, known: Measurements | None = None) -> Measurements | None:
        """Measure or compile what steps will need, before any clock runs.

        What is returned stands in the record, and is handed back as `known` when a run resumes.
        """
        return None

    def begin(self, context: Context, scores: Scores) -> None:
        """Start a generation, after the prefill (whose scores these are) and the first token."""

    def propose(self, context: Context, budget: int) -> Tree:
        """Return a tree rooted in `context.tokens[-1]`.

        What is deeper than `budget` cannot be used.
        """
        raise TypeError(f"{type(self).__name__} has no propose(context, budget)")

    def observe(self, step: Step) -> None:
        """Learn from a step that was just committed. Its tree may hold others' candidates too, or
        none of the drafter's own.
        """

    def chances(self) -> Sequence[float] | None:
        """Return the chance of each drafted node of the tree last proposed that the target accepts
        the whole path to it, node 1's first; None: the drafter knows none.
        """
        return None

    def may_share(self) -> bool:
        """Whether requests that are decoded together may each have a drafter like this one.

        By default where it learns nothing across prompts: then no request's drafts depend on which
        others ran before it.
        """
        return self.scope == "prompt"

    def twin(self) -> Drafter | None:
        """Return another drafter with these settings and measurements and a state of its own, for a
        request that is decoded beside this one's; they may share weights.

        None: its class is called once more.
        """
        return None

    def device_drafter(self) -> Any:
        """Return what drafts whole trees on the device (`engine.device_loop.DeviceDrafter`).

        None: steps are run by the host.
        """
        return None


@runtime_checkable
class Engine(Protocol):
    """A decoder that generates by itself and verifies its drafts in its own way."""

    def generate(self, prompt: list[int], sampler: Any, limit: Limit) -> Generation: ...


def told(engine: Any, name: str, otherwise: Any) -> Any:
    """Return what an engine's method of this name tells; `otherwise` where it has none to call."""
    method = getattr(engine, name, None)
    return method() if callable(method) else otherwise


class _Adapted(Drafter):
    """An object with `propose` that does not inherit from `Drafter`.

    The defaults, and whatever it has of its own.
    """

    OPTIONAL = (
        "scope",
        "capture",
        "settings",
        "prepare",
        "begin",
        "observe",
        "chances",
        "may_share",
        "twin",
        "device_drafter",
    )

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.propose = decoder.propose  # type: ignore[method-assign]
        for name in self.OPTIONAL:
            if hasattr(decoder, name):
                setattr(self, name, getattr(decoder, name))
        rule = getattr_static(decoder, "rule", match)
        self.rule = rule if isinstance(rule, Rule) else Rule(rule)


def as_drafter(decoder: Any) -> Drafter:
    """Return the decoder as a `Drafter`: itself, or an adapter around an object that only has the
    methods.

    Raises TypeError where it has no `propose`.
    """
    is_drafter = isinstance(decoder, Drafter)
    proposes = getattr(decoder, "propose", None)
    is_inherited = is_drafter and getattr(proposes, "__func__", None) is Drafter.propose
    if not callable(proposes) or is_inherited:
        raise TypeError(f"{type(decoder).__name__} has no propose(context, budget)")
    return decoder if is_drafter else _Adapted(decoder)


def as_engine(decoder: Any) -> Engine | None:
    """Return the decoder if it generates by itself, None if it drafts for our loop."""
    if isinstance(decoder, Drafter) or callable(getattr(decoder, "propose", None)):
        return None
    return decoder if isinstance(decoder, Engine) else None
