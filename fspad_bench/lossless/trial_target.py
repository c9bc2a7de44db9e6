"""What every trial of a mutation runs on, made before the first mutation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.verification import Rule, match
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.engine.penalties import Penalties
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.together import keeps_bits
from fspad_bench.lossless.engines import small_engines, tiny_on_kernels
from fspad_bench.lossless.identity import PROMPTS, Cell, encode, reference
from fspad_bench.lossless.mutations import Applied
from fspad_bench.lossless.reference import Reference

DECODER = "fspad"
TOKENS = 24
PENALTIES = Penalties(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3)
TEMPERATURES = {"greedy": 0.0, "T=0.5": 0.5, "T=1": 1.0}


class Engines:
    """Small targets with their references, which are made before any mutation."""

    def __init__(self, tiny: TransformersTarget) -> None:
        self.references: list[Reference] = []
        for target in small_engines(tiny).values():
            twins = (known for known in self.references if known.serves(target))
            reference = Reference(target, keep=True, twin=next(twins, None))
            assert reference.model is not None
            self.references.append(reference)
        # on the CPU: wrong steps read numbers, which none that is captured could. A target of their
        # own, whose cache no long prefix enlarges: the reference kernels read all of it
        self.on_kernels = [tiny_on_kernels()]

    @property
    def targets(self) -> list[TransformersTarget]:
        return [reference.target for reference in self.references]

    @property
    def are_compiled(self) -> bool:
        """Whether any runs the compiled step, on which `compiled` mutations show."""
        return any(map(keeps_bits, self.targets))


class TrialTarget:
    """The tiny target, a decoder on it that branches and is often right, and vanilla's outputs."""

    def __init__(self, target: TransformersTarget) -> None:
        self.target = target
        self.vanilla = {kind: reference(target, cells) for kind, cells in self.cells.items()}

    @cached_property
    def engines(self) -> Engines:
        return Engines(self.target)

    @cached_property
    def prompts(self) -> list[list[int]]:
        texts = [f"{prompt} {i}" for i in range(3) for prompt in PROMPTS]
        return encode(self.target, texts)

    @cached_property
    def cells(self) -> dict[str, list[Cell]]:
        """The generations of each kind of identity: by temperature, with stops, with penalties."""
        cells = {kind: self._cells(Sampler(t), frozenset()) for kind, t in TEMPERATURES.items()}
        stops = frozenset(range(0, self.target.config.vocab_size, 5))
        penalised = Sampler(0.5, processors=PENALTIES.processors)
        penalties = self._cells(penalised, frozenset())
        return cells | {"stops": self._cells(Sampler(1.0), stops), "penalties": penalties}

    def _cells(self, sampler: Sampler, stops: frozenset[int]) -> list[Cell]:
        limit = Limit(TOKENS, stops)
        return [
            Cell(f"{i}", prompt, sampler.streamed(f"trial {i}"), limit)
            for i, prompt in enumerate(self.prompts)
        ]

    def decoder(self, applied: Applied) -> Decoder:
        """Return the decoder, by the wrong rule where the mutation is one.

        `outputs` runs it on the host.
        """
        decoder = build_decoder(DECODER, self.target)
        assert decoder.drafter is not None
        decoder.drafter.rule = Rule(
            match.verify
        )  # no kernel carries out a rule that is not `match`
        applied.spoil(decoder.drafter)
        return decoder.on_host()


Trial = Callable[[Applied, TrialTarget], bool]
