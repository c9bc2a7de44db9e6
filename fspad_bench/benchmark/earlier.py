"""What an interrupted run has recorded, so that its rest goes on as if nothing had interrupted it.

- A turn is finished when it is recorded beside vanilla's of the same round. Where a record has
  damaged lines, the audit or the evidence that the turn needs must be there too, and of vanilla its
  second turn.
- A decoder that learns across prompts (scope `run`) forgot them with its process. It generates what
  it had finished again, off the record, before it goes on, and must take the recorded steps.
- What the others took is what the guard of their state asks again at the end.
- Recorded answers are kept as compressed bytes: no decoder finds them as objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from fspad_bench.benchmark.guards.answers import opened, sealed
from fspad_bench.benchmark.guards.state import starts_anew, steps
from fspad_bench.benchmark.guards.watch import Watch
from fspad_bench.benchmark.prompts import Message, Prompts
from fspad_bench.benchmark.record import VANILLA, Audit, Key, Pit, Records, Sample
from fspad_bench.benchmark.units import UnitName
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.errors import BenchError


class Conversation(NamedTuple):
    """A question with the keys of a decoder's samples and of vanilla's; `sampler` is that of a
    turn.
    """

    place: UnitName
    turns: list[str]
    key: str
    vanilla: str
    sampler: Callable[[int], Sampler]
    limit: Limit
    prompts: Prompts


class Earlier:
    """The finished turns of a record, by key, question, repeat and turn."""

    def __init__(self, known: Records) -> None:
        self.content = {
            (sample.key, UnitName(sample.sample, sample.repeat), sample.turn): sealed(sample)
            for sample in _finished(known)
        }

    def has(self, key: str, place: UnitName, turns: int) -> bool:
        """Return whether all turns of a question are finished."""
        return all((key, place, turn) in self.content for turn in range(turns))

    def sample(self, key: str, place: UnitName, turn: int) -> Sample:
        """Return a finished turn's last generation, while no decoder runs."""
        sample = opened(self.content[key, place, turn])
        assert isinstance(sample, Sample)
        return sample

    def prompts(self, asked: Conversation) -> Iterator[tuple[int, list[int]]]:
        """Yield number and prompt of each turn that was generated, on top of vanilla's answers."""
        messages: list[Message] = []
        for turn, text in enumerate(asked.turns):
            messages.append({"role": "user", "content": text})
            try:
                tokens = asked.prompts.tokens(messages)
            except BenchError:  # the template takes no such conversation
                return
            yield turn, tokens
            answer = self.sample(asked.vanilla, asked.place, turn)
            if answer.error:
                return
            messages.append({"role": "assistant", "content": asked.prompts.text(answer.tokens)})


class Replay:
    """Brings decoders to where a record's finished conversations have left them.

    `last`: the number of the last unit that is not finished.
    """

    def __init__(
        self,
        earlier: Earlier,
        target: TransformersTarget,
        watch: Watch,
        last: int,
    ) -> None:
        self.earlier = earlier
        self.target = target
        self.watch = watch
        self.last = last

    def take_up(self, number: int, decoder: Decoder, asked: Conversation) -> None:
        """Take up the conversation of unit `number`, which a decoder has finished."""
        if starts_anew(decoder):
            self._remember(decoder, asked)
        elif decoder.scope == "run" and number < self.last:
            self._repeat(decoder, asked)

    def _remember(self, decoder: Decoder, asked: Conversation) -> None:
        """Let the guard of state know recorded steps, as long as it has room."""
        if not self.watch.state.has_room(decoder):
            return
        for turn, tokens in self.earlier.prompts(asked):
            sample = self.earlier.sample(asked.key, asked.place, turn)
            if not sample.error:
                sampler = asked.sampler(turn)
                self.watch.state.note(decoder, sampler, tokens, asked.limit, sample)

    def _repeat(self, decoder: Decoder, asked: Conversation) -> None:
        """Generate a conversation again, and hold its steps to the recorded ones."""
        for turn, tokens in self.earlier.prompts(asked):
            taken = None
            with suppress(Exception), self.watch.turn(decoder):
                sampler = asked.sampler(turn)
                taken = steps(decoder.generate(self.target, sampler, tokens, asked.limit))
            sample = self.earlier.sample(asked.key, asked.place, turn)
            if taken != (None if sample.error else steps(sample)):
                self.watch.replayed_otherwise(decoder)


def _finished(known: Records) -> Iterator[Sample]:
    """Yield the samples of finished turns."""
    settings = {name: key.setting for name, key in known.keys.items()}
    partners = {
        (settings[s.key], s.place): s for s in known.samples if known.keys[s.key].decoder == VANILLA
    }
    entries: list[Audit | Pit | Sample] = [*known.audits, *known.pits, *known.aa]
    backed = {(entry.key, entry.place) for entry in entries}
    for sample in known.samples:
        vanilla = partners.get((settings[sample.key], sample.place))
        if vanilla is None:
            continue
        needs = _needs_evidence(known.keys[sample.key], sample, vanilla)
        if sample is vanilla:
            needs = bool(known.aa) and not sample.error
        if not (known.damaged and needs) or (sample.key, sample.place) in backed:
            yield sample


def _needs_evidence(key: Key, sample: Sample, vanilla: Sample) -> bool:
    """Return whether an audit or a PIT belongs to a sample."""
    if sample.error or not key.identical:
        return not sample.error
    return not vanilla.error and sample.tokens != vanilla.tokens
