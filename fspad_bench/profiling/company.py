"""Whether requests that are decoded together get the tokens that each gets alone.

- `match` gives tokens that depend on the text alone. Where the engine gives a row the same bits in
  any company, every difference is a fault; elsewhere it is audited as one from vanilla is
  (`benchmark.audit`): rounding at a near tie explains it, or does not.
- Under other rules tokens depend on the tree, which may be smaller in a batch: a difference proves
  nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.record import Audit
from fspad_bench.benchmark.verdict import verdict
from fspad_bench.core.protocols import Generation
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.shared_loop import Question
from fspad_bench.core.verification import match
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.together import keeps_bits
from fspad_bench.util.memory import free_unreachable, is_out_of_memory

LOSSY = "lossy"


class Referee:
    """Compares generations with those of the same questions at batch 1.

    `alone`: each decoder's tokens by question; `vanilla`: vanilla's.
    """

    def __init__(
        self,
        target: TransformersTarget,
        questions: Sequence[Question],
        alone: Mapping[str, Sequence[Sequence[int]]],
        vanilla: Sequence[Sequence[int]],
    ) -> None:
        self.target = target
        self.questions = questions
        self.alone = alone
        self.vanilla = vanilla
        self.auditor = Auditor(target)

    def differing(self, label: str, generations: Mapping[int, Generation]) -> list[int]:
        """Return the numbers of the requests whose tokens are not those that they get alone."""
        alone = self.alone[label]
        return [
            number
            for number, generation in sorted(generations.items())
            if list(generation.tokens) != list(alone[number % len(alone)])
        ]

    def verdict(self, decoder: Decoder, generations: Mapping[int, Generation]) -> str:
        """Return `exact`, `tie`, `unverified` or `lossy`, of tokens in a batch and alone."""
        differing = self.differing(decoder.label, generations)
        assert decoder.drafter is not None
        is_match = decoder.drafter.rule is match
        if differing and is_match and keeps_bits(self.target):
            return LOSSY
        audits = self._audits(differing, generations) if is_match else []
        tokens = sum(len(generation.tokens) for generation in generations.values())
        dtype = str(self.target.dtype).removeprefix("torch.")
        return verdict(len(differing), tokens, audits, audits, dtype)

    def _audits(self, numbers: Sequence[int], generations: Mapping[int, Generation]) -> list[Audit]:
        """Audit these requests; none where the precise copy of the target does not fit."""
        try:
            return [self._audit(number, generations[number].tokens) for number in numbers]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        free_unreachable()
        return []

    def _audit(self, number: int, tokens: Sequence[int]) -> Audit:
        place = number % len(self.questions)
        question = self.questions[place]
        assert isinstance(question.sampler, Sampler)
        vanilla = list(self.vanilla[place])
        finding = self.auditor.audit(
            question.sampler, list(question.prompt), vanilla, list(tokens), question.limit
        )
        return Audit("", str(place), 0, str(number), *finding)
