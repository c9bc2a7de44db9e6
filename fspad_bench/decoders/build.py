"""A decoder by its label, ready to generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from time import perf_counter
from typing import Any, get_args

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import (
    Context,
    Drafter,
    Engine,
    Generation,
    Limit,
    Measurements,
    Scope,
    as_drafter,
    as_engine,
    told,
)
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.verification import RULES, match
from fspad_bench.decoders.about import baseline
from fspad_bench.decoders.border import blamed, check_ids, received, wholes
from fspad_bench.decoders.code import code_hashes
from fspad_bench.decoders.foreign import confirmed, first_steps
from fspad_bench.decoders.label import Label, read_options
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.engine.device_loop import DeviceLoop, runs_on_device
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.plain import plain
from fspad_bench.util.strangers import contained

SERVED_CLASS = "fspad_bench.serving.decoder:Served"


class Decoder:
    """A decoder ready to run: a drafter in our loop, or an engine as it is.

    `prepare` is called once before the first generation, by `generate` if by no other.
    """

    def __init__(
        self,
        label: str,
        target: Any,
        *,
        drafter: Drafter | None = None,
        engine: Engine | None = None,
        options: dict[str, Any] | None = None,
        unsaid: dict[str, Any] | None = None,
    ) -> None:
        self.label = label
        self.target = target
        self.drafter = drafter
        self.engine = engine
        self.given = options or {}
        self.unsaid = unsaid or {}
        self.prepared = False
        self.processes: list[int] = []  # beside this one, that work in its turns
        self.measurements: Measurements | None = None
        self._loop: DeviceLoop | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The settings that really run: those that the decoder has resolved, or else the options
        given; and what is `unsaid` there.
        """
        with blamed(self.label, "settings()"):
            if self.drafter:
                resolved = dict(self.drafter.settings())
            else:
                resolved = dict(told(self.engine, "settings", {}))
            return dict(plain((resolved or self.given) | self.unsaid))

    @property
    def scope(self) -> Scope:
        return self.drafter.scope if self.drafter else "prompt"

    @property
    def verification(self) -> str:
        """The rule's name; `own`: a custom rule; `foreign`: an engine that verifies internally."""
        if self.drafter is None:
            return "foreign"
        rule = self.drafter.rule
        return next((name for name, known in RULES.items() if rule is known), "own")

    def whole(self) -> None:
        """Let its drafter propose every candidate from now on, whatever pays on this machine."""
        if isinstance(self.drafter, SizedDrafter):
            self.drafter.whole()

    def prepare(self, known: Measurements | None = None) -> None:
        """Let the drafter measure and compile what it needs, or take what a resumed run has
        `known`.
        """
        self.prepared = True
        if self.drafter is None:
            with blamed(self.label, "processes()"):
                self.processes = wholes(told(self.engine, "processes", []), "processes")
            return
        with blamed(self.label, "prepare()"):
            measured = self.drafter.prepare(self.target, known)
            self.measurements = None if measured is None else plain(dict(measured))
            on_device = self.drafter.device_drafter() if _is_whole(self.drafter) else None
        if on_device is not None and runs_on_device(self.target):
            self._loop = DeviceLoop(self.target, on_device)

    def check_sampler(self, sampler: Sampler) -> None:
        """Raise BenchError for logits processors or min-p, which no foreign engine is told of."""
        if self.drafter is None and (sampler.processors or sampler.min_p):
            raise BenchError(
                f"{self.label} is an engine of its own: it takes no penalties and no min-p",
                "leave it out, or run without them",
            )

    def on_host(self) -> Decoder:
        """Return the same decoder with its steps run by the host, on a device too."""
        assert self.drafter is not None
        decoder = Decoder(self.label, self.target, drafter=self.drafter, options=self.given)
        decoder.prepare()
        decoder._loop = None
        return decoder

    @property
    def loop(self) -> DeviceLoop | None:
        """The loop on the device, where target and decoder need no host."""
        if not self.prepared:
            self.prepare()
        return self._loop

    def generate(
        self, target: Any, sampler: Sampler, prompt: list[int], limit: Limit
    ) -> Generation:
        """Decode a prompt. An engine's answer is cut at the limit.

        ValueError where it ends before it.
        """
        prompt = list(prompt)  # a decoder may change its own
        with contained():
            if self.drafter is None:
                return self._by_engine(target, prompt, sampler, limit)
            if self.loop and not sampler.on_host:
                return received(self.loop.generate(sampler, prompt, limit))
            return received(generate(target, self.drafter, sampler, prompt, limit))

    def _by_engine(
        self, target: Any, prompt: list[int], sampler: Sampler, limit: Limit
    ) -> Generation:
        """Time an engine from outside: the whole call, which counts as prefill, since only the
        engine could say which part was decoding.

        What the engine says of itself is kept as its claims. What it made beyond the limit was made
        in the same time, and counts as far as the target confirms it.
        """
        assert self.engine is not None
        self.check_sampler(sampler)
        began = perf_counter()
        returned = self.engine.generate(list(prompt), sampler, limit)
        seconds = perf_counter() - began
        generation = received(returned)
        made = generation.tokens
        check_ids(made, target.config.vocab_size)
        tokens = limit.cut(Context(prompt, len(prompt)), made)
        context = Context([*prompt, *tokens], len(prompt))
        stopped = bool(tokens) and limit.stopped(context)
        if len(tokens) < limit.max_new_tokens and not stopped:
            raise ValueError(
                f"{self.label} ended after {len(tokens)} tokens, neither at a stop nor at the limit"
            )
        beyond = [] if stopped else made[len(tokens) :]
        return Generation(
            tokens,
            prefill_seconds=seconds,
            decode_seconds=0.0,
            claims=_claims(generation, len(tokens) - 1 if stopped else None),
            overshoot=confirmed(target, sampler, context, beyond, limit),
        )


def _is_whole(drafter: Drafter) -> bool:
    """Whether what a drafter has for the device drafts as it does itself.

    Not where a class inherits that and has a `propose` or a rule of its own: the host runs it.
    """
    drafts, on_device = (_definer(type(drafter), name) for name in ("propose", "device_drafter"))
    return drafter.rule is match and issubclass(on_device, drafts)


def _definer(kind: type, method: str) -> type:
    """Return the class that a class has a method of."""
    return next((base for base in kind.__mro__ if method in vars(base)), object)


def added_options(decoder: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a class adds to those of the class whose `settings` it inherits,
    which cannot tell them.
    """
    author = _definer(type(decoder), "settings")
    told_of = signature(author).parameters if author is not object else {}
    return {name: value for name, value in given.items() if name not in told_of}


def _claims(generation: Generation, to_stop: int | None) -> dict[str, Any]:
    """Return what an engine says of its own work; what it leaves out is absent.

    `committed` and `forwards` are not cut at the limit, so that they stay those of the same steps.
    What follows a stop, `to_stop` tokens after the prefill's, is no output and does not count.
    """
    committed = generation.committed
    claims = {
        "forwards": generation.forwards,
        "partial_forwards": generation.partial_forwards,
        "committed": committed if to_stop is None else first_steps(committed, to_stop),
        "prefill_seconds": generation.prefill_seconds,
        "decode_seconds": generation.decode_seconds,
    }
    return {name: value for name, value in claims.items() if value} | generation.claims


def find(label: Label) -> tuple[type, dict[str, Any]]:
    """Return the decoder's class and the preset's options."""
    if label.served:
        return registry.resolve(registry.DECODERS, SERVED_CLASS), {"url": label.served}
    decoder = registry.resolve(registry.DECODERS, label.decoder)
    if not label.preset:
        return decoder, {}
    presets = baseline(label.decoder).get("presets", {})
    if label.preset not in presets:
        raise BenchError(
            f"{label.decoder} has no preset '{label.preset}'", near(label.preset, presets)
        )
    return decoder, {name: str(value) for name, value in presets[label.preset].items()}


def configure(label: str, options: dict[str, dict[str, str]]) -> tuple[type, dict[str, Any]]:
    """Return the decoder's class and all its options, the user's over the preset's.

    Raises BenchError where the name or an option is not usable.
    """
    if not isinstance(label, str):
        raise BenchError(
            f"{label!r:.80} is no name of a decoder",
            "give its name, or package.module:Class; fspad_bench.generate runs a drafter object",
        )
    parts = Label.of(label)
    decoder, given = find(parts)
    for prefix in parts.option_prefixes:
        given = given | options.get(prefix, {})
    return decoder, read_options(decoder, given, parts.own or parts.decoder)


def check_options(labels: Sequence[str], options: dict[str, dict[str, str]]) -> None:
    """Raise BenchError for an unknown decoder, a name given twice, or an option that no decoder
    here reads.
    """
    for label in labels:
        configure(label, options)
    shown = [Label.of(label).shown for label in labels]
    for name in shown:
        if shown.count(name) > 1:
            raise BenchError(
                f"two decoders are called '{name}'", "give one a name of its own: other=DECODER"
            )
    known = {prefix for label in labels for prefix in Label.of(label).option_prefixes}
    for name in options:
        if name not in known:
            raise BenchError(f"-D {name}...: this run has no decoder '{name}'", near(name, known))


def build_decoder(
    label: str, target: Any, options: dict[str, dict[str, str]] | None = None
) -> Decoder:
    """Build a decoder by its label on a target; `options` by prefix, as `-D` gives them. Nothing is
    measured.

    Raises BenchError where the name, an option or the class is not usable.
    """
    cls, chosen = configure(label, options or {})
    with blamed(label, "its constructor"):
        decoder = cls(target, **chosen)
    unsaid = added_options(decoder, chosen) | code_hashes(cls)
    with blamed(label, "one of its attributes"):
        engine = as_engine(decoder)
        if engine is not None:
            return Decoder(label, target, engine=engine, options=chosen, unsaid=unsaid)
        drafter = _checked_drafter(label, decoder)
    return Decoder(label, target, drafter=drafter, options=chosen, unsaid=unsaid)


def _checked_drafter(label: str, decoder: Any) -> Drafter:
    """Return the decoder as a drafter. Raises BenchError where it is none."""
    try:
        drafter = as_drafter(decoder)
    except TypeError as error:
        hint = "a decoder has propose(context, budget) or generate(prompt, sampler, limit)"
        misspelt = get_close_matches("propose", set(dir(decoder)) - {"propose"}, n=1, cutoff=0.75)
        if misspelt:
            hint = f"is {misspelt[0]} meant to be propose? {hint}"
        raise BenchError(f"{label} is not a decoder: {error}", hint) from error
    if not callable(getattr(drafter.rule, "verify", drafter.rule)):
        raise BenchError(
            f"{label}: its rule is not a function", "such as one of fspad_bench.core.verification"
        )
    if drafter.scope not in get_args(Scope):
        raise BenchError(
            f"{label}: its scope is {drafter.scope!r:.60}", 'write scope = "prompt" or "run"'
        )
    return drafter
