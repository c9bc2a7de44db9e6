"""One request of the double: draft a chain, verify it, commit, with at most one fault switched on.

- `rejection` accepts a draft x with probability p(x) / q(x), or else draws from norm((p - q)+): the
  target's distribution, other tokens than without speculation. `match` draws from the target with
  noise keyed by seed and position: the tokens of plain decoding with the same seed.
- All noise is a function of seed, position and purpose. A draft that is thrown away was never
  judged, so its noise can be used again when its position is drafted again.
- Each fault is one that shipped; `FAULTS` says where it was seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fspad_bench.core.sampling import Sampler
from fspad_bench.serving.double.model import (
    END,
    Distributions,
    Markov,
    Penalties,
    distribution,
    exponentials,
    race,
)

FAULTS = {
    "bonus-without-temperature": "the token after an accepted draft is drawn at temperature 1",
    "recovery-noise-reused": "what follows a refusal is drawn with the noise that drew the draft",
    "one-hot-residual": "what follows a refusal is drawn as if the draft had been certain",
    "filter-order": "verification cuts before it scales, and by top-p beside top-k",
    "short-rollback": "at one draft depth a wholly refused draft leaves its first token behind",
    "ignored-sampling": "temperature and cuts are ignored with speculation on",
    "shorter-outputs": "an end that is drafted ends the text, accepted or not",
    "cached-answers": "a sampled answer is given again to the same prompt",
}
RULES = ("rejection", "match")
NEUTRAL = Penalties()


@dataclass(frozen=True)
class Request:
    """The settings of one generation. `depth` 0 is decoding without speculation."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampler: Sampler
    penalties: Penalties = NEUTRAL
    depth: int = 0


class Step(NamedTuple):
    """The tokens that one step committed, and how many of its drafts were accepted."""

    tokens: list[int]
    drafted: int
    accepted: int


@dataclass(frozen=True)
class Models:
    """A target's distributions and its draft's."""

    target: Distributions
    draft: Distributions

    @classmethod
    def of(cls, salt: int, noise: float, end: float) -> Models:
        target = Markov(salt, end=end)
        return cls(
            Distributions(target), Distributions(Markov(salt + 1, target=target, noise=noise))
        )


class Generation:
    """A generation in progress; `finish` is set once it is over."""

    def __init__(
        self,
        models: Models,
        request: Request,
        *,
        rule: str = "rejection",
        fault: str | None = None,
        fault_depth: int = 0,
    ) -> None:
        self.models = models
        self.request = request
        self.rule = rule
        self.fault = fault if request.depth else None
        self.fault_depth = fault_depth
        self.output: list[int] = []
        self.left_behind: int | None = None  # a refused token that stands before the last one
        self.finish = ""
        self.sampler = request.sampler
        if self.fault == "ignored-sampling" and not self.sampler.greedy:
            self.sampler = Sampler(temperature=1.0, seed=self.sampler.seed)

    def steps(self) -> Iterator[Step]:
        """Yield the steps until the text ends or is long enough."""
        while not self.finish:
            room = self.request.max_tokens - len(self.output)
            step = self._speculate(min(self.request.depth, room - 1))
            tokens = step.tokens[:room]
            if END in tokens:
                tokens = tokens[: tokens.index(END) + 1]
                self.finish = "stop"
            self.output += tokens
            if not self.finish and len(self.output) == self.request.max_tokens:
                self.finish = "length"
            yield Step(tokens, step.drafted, step.accepted)

    def _speculate(self, depth: int) -> Step:
        """Return one step: `depth` drafted tokens, verified, and the target's token after them."""
        context = self._context()
        drafts: list[int] = []
        for _ in range(depth):
            q = self._q(context, drafts)
            purpose = "token" if self.rule == "match" else "draft"
            drafts.append(race(q, self._noise(len(drafts), purpose, len(q))))
        tokens = self._verified(context, drafts)
        accepted = len(tokens) - 1
        self.left_behind = None
        too_short = self.fault == "short-rollback" and self.request.depth == self.fault_depth
        if too_short and drafts and not accepted:
            self.left_behind = drafts[0]  # wrong: the state keeps it
        if self.fault == "shorter-outputs" and END in drafts[accepted:]:
            tokens.append(END)  # wrong: it was not accepted
        return Step(tokens, depth, accepted)

    def _verified(self, context: list[int], drafts: Sequence[int]) -> list[int]:
        """Return the accepted drafts and the target's token after them."""
        for i, draft in enumerate(drafts):
            p = self._p(context, drafts[:i])
            if self.rule == "match":
                token = race(p, self._noise(i, "token", len(p)))
                if token != draft:
                    return [*drafts[:i], token]
                continue
            q = self._q(context, drafts[:i])
            if random.Random(self._key(i, "accept")).random() * q[draft] >= p[draft]:
                return [*drafts[:i], self._recovered(p, q, draft, i)]
        p = self._bonus(context, drafts)
        return [*drafts, race(p, self._noise(len(drafts), "token", len(p)))]

    def _recovered(self, p: list[float], q: list[float], draft: int, i: int) -> int:
        """Return the token in place of a refused draft."""
        if self.fault == "one-hot-residual":
            q = [float(token == draft) for token in range(len(q))]  # wrong: it was sampled
        rest = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
        purpose = "draft" if self.fault == "recovery-noise-reused" else "recovery"
        return race(rest if any(rest) else p, self._noise(i, purpose, len(p)))

    def _bonus(self, context: list[int], drafts: Sequence[int]) -> list[float]:
        """Return the distribution of the token after the last draft, all of them accepted."""
        if self.fault == "bonus-without-temperature" and drafts and not self.sampler.greedy:
            logits = self.models.target.model.logits([*context, *drafts])
            return distribution(logits, replace(self.sampler, temperature=1.0), False)  # wrong
        return self._p(context, drafts)

    def _context(self) -> list[int]:
        """Return the text so far, as the target's state holds it."""
        text = [*self.request.prompt, *self.output]
        if self.left_behind is not None:
            text[-2:-1] = [self.left_behind]
        return text

    def _p(self, context: list[int], drafts: Sequence[int]) -> list[float]:
        wrong_order = self.fault == "filter-order"
        return self._distribution(self.models.target, context, drafts, wrong_order)

    def _q(self, context: list[int], drafts: Sequence[int]) -> list[float]:
        return self._distribution(self.models.draft, context, drafts, False)

    def _distribution(
        self, model: Distributions, context: list[int], drafts: Sequence[int], wrong_order: bool
    ) -> list[float]:
        text = [*context[-2:], *drafts]
        if self.request.penalties.neutral:
            return model.after(text, self.sampler, wrong_order=wrong_order)
        output = [*self.output, *drafts]
        logits = self.request.penalties.applied(
            model.model.logits(text), self.request.prompt, output
        )
        return distribution(logits, self.sampler, wrong_order)

    def _noise(self, ahead: int, purpose: str, size: int) -> list[float]:
        """Return the exponential clocks of the position `ahead` of the next one."""
        return exponentials(self.sampler.seed, len(self.output) + ahead, purpose, size)

    def _key(self, ahead: int, purpose: str) -> str:
        return f"{self.sampler.seed} {len(self.output) + ahead} {purpose}"
