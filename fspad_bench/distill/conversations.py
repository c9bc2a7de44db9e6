"""Conversations of a target with itself, in waves: everyone asks, everyone answers, some ask again.

Questions are sampled at 0.9 after the template's user prefix and the opening of their kind, texts that they are about
at 0.8 after an opening alone; of the answers six in ten are greedy, the rest at 0.7 and 1. Every row that comes out is
token ids, with the spans of the assistant's answers. Some conversations are held out from learning; they quote each
other alone, and nobody else quotes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fspad_bench.distill.topics import FOLLOW_UPS, KINDS, MATERIAL, QUESTION, TEXT
from fspad_bench.engine.batch import Request, Stream, Wave
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.chat import Chat, Message, Rendered, assistant, user
from fspad_bench.training.features import HELD_OUT_EVERY

QUESTION_LENGTH = 96
ANSWER_LENGTH = 256
QUESTION_TEMPERATURE = 0.9
TEXT_TEMPERATURE = 0.8
TEXT_LENGTH = 512
TOKENS_A_WORD = 2
SHORTEST_TEXT = 12  # in words, its opening's among them
TEMPERATURES = (0.0, 0.7, 1.0)
WEIGHTS = (0.6, 0.2, 0.2)
# in words; warmer answers are too odd to ask about
SHORTEST_MATERIAL = 40
WARMEST_MATERIAL = 0.8


@dataclass
class Talk:
    """One conversation as it grows. `done` is its last state as tokens; a talk that came to nothing has none."""

    kind: str
    temperature: float
    length: int = ANSWER_LENGTH
    opening: str = ""
    held_out: bool | None = None
    messages: list[Message] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    done: Rendered | None = None

    def row(self) -> dict[str, Any]:
        row = {
            "tokens": self.done.tokens,
            "answers": [list(span) for span in self.done.answers],
            "temperature": self.temperature,
            "kind": self.kind,
        }
        return row if self.held_out is None else row | {"held_out": self.held_out}


class Talks:
    """A target's own conversations, as streams of waves for `answer_streams`; `seed` decides all that is drawn."""

    def __init__(self, target: TransformersTarget, *, seed: Sequence[int]) -> None:
        self.target = target
        self.chat = Chat(target.tokenizer, target.stop_ids)
        self.seed = tuple(seed)
        self.waves = 0
        self.rng = np.random.default_rng(self.seed)

    def free(self, count: int) -> Stream[list[dict[str, Any]]]:
        """About `count` conversations of all kinds; those in which somebody said nothing are left out."""
        shares = np.array([kind.share for kind in KINDS.values()])
        drawn = self.rng.choice(list(KINDS), size=count, p=shares / shares.sum())
        talks = [self._talk(str(kind)) for kind in sorted(drawn)]
        chosen = int(self.rng.integers(HELD_OUT_EVERY))
        for place, talk in enumerate(talks):
            talk.held_out = place % HELD_OUT_EVERY == chosen
        first = [talk for talk in talks if KINDS[talk.kind].material is None]
        reading = yield from self.write([talk for talk in talks if KINDS[talk.kind].texts])
        yield from self.ask([talk for talk in [*first, *reading] if not talk.messages])
        yield from self.answer([*first, *reading])
        texts = [talk for talk in first if talk.done and _is_material(talk)]
        later = [talk for talk in talks if KINDS[talk.kind].material and not KINDS[talk.kind].texts]
        for talk in later:
            if own := [text for text in texts if text.held_out == talk.held_out]:
                talk.messages.append(user(self._about(talk, own)))
        yield from self.answer(later)
        again = [talk for talk in first if talk.done and self.rng.random() < FOLLOW_UPS]
        for talk in again:
            talk.opening = ""
        yield from self.ask(again)
        yield from self.answer([talk for talk in again if talk.messages[-1]["role"] == "user"])
        return [talk.row() for talk in talks if talk.done]

    def again(self, scripts: Iterable[list[Message]]) -> Stream[list[dict[str, Any]]]:
        """The users' messages of given conversations, answered anew by the target turn by turn."""
        talks = []
        for script in scripts:
            talk = Talk("given", self._temperature())
            talk.messages = [message for message in script[:1] if message["role"] == "system"]
            talk.waiting = [message["content"] for message in script if message["role"] == "user"]
            talks.append(talk)
        while open_talks := [talk for talk in talks if talk.waiting]:
            for talk in open_talks:
                talk.messages.append(user(talk.waiting.pop(0)))
            yield from self.answer(open_talks)
            for talk in open_talks:
                if talk.messages[-1]["role"] == "user":  # it had no answer
                    talk.waiting = []
        return [talk.row() for talk in talks if talk.done]

    def write(self, talks: Sequence[Talk]) -> Stream[list[Talk]]:
        """Put the texts that each talk is about, written outside the template, in its opening. Returns the talks that
        have all of theirs: a target may have nothing to say unasked."""
        counts = [
            int(self.rng.integers(*KINDS[talk.kind].material, endpoint=True)) for talk in talks
        ]
        every = [talk for talk, count in zip(talks, counts, strict=True) for _ in range(count)]
        begun = [
            str(self.rng.choice(np.array(KINDS[talk.kind].texts, dtype=object))) for talk in every
        ]
        openings = [self.chat.tokenizer(opening)["input_ids"] for opening in begun]
        requests = [
            Request(
                opening, TEXT_TEMPERATURE, min(TEXT_LENGTH, TOKENS_A_WORD * KINDS[talk.kind].words)
            )
            for talk, opening in zip(every, openings, strict=True)
        ]
        written = zip(openings, (yield self._wave(requests)), strict=True)
        texts = iter([self._decoded([*opening, *said]) for opening, said in written])
        told = []
        for talk, count in zip(talks, counts, strict=True):
            kind = KINDS[talk.kind]
            own = [next(texts) for _ in range(count)]
            talk.opening = talk.opening.replace(TEXT, _joined(own, kind.words))
            if min(len(text.split()) for text in own) >= SHORTEST_TEXT:
                told.append(talk)
                if not kind.asks:
                    talk.messages.append(user(talk.opening))
        return told

    def ask(self, talks: Sequence[Talk]) -> Stream[None]:
        """Each user's next message: the opening and what the target makes of it. One who says nothing, or for whom the
        context has no room, stays silent."""
        asking = []
        openings = []
        requests = []
        for talk in talks:
            opening = self.chat.tokenizer(talk.opening, add_special_tokens=False)["input_ids"]
            prompt = [*self.chat.user_prefix(talk.messages), *opening]
            if len(prompt) + QUESTION_LENGTH <= self.target.max_length:
                asking.append(talk)
                openings.append(opening)
                requests.append(Request(prompt, QUESTION_TEMPERATURE, QUESTION_LENGTH))
        for talk, opening, said in zip(asking, openings, (yield self._wave(requests)), strict=True):
            text = self._decoded([*opening, *said])
            if len(text) > len(talk.opening.strip()):
                talk.messages.append(user(text))

    def answer(self, talks: Sequence[Talk]) -> Stream[None]:
        """The assistant's next message. What leaves no room in the context, or is empty, ends the conversation."""
        asked = [talk for talk in talks if talk.messages and talk.messages[-1]["role"] == "user"]
        prompts = [self.chat.prompt(talk.messages) for talk in asked]
        fitting = [
            (talk, prompt)
            for talk, prompt in zip(asked, prompts, strict=True)
            if len(prompt.tokens) + talk.length <= self.target.max_length
        ]
        requests = [
            Request(prompt.tokens, talk.temperature, talk.length) for talk, prompt in fitting
        ]
        for (talk, prompt), said in zip(fitting, (yield self._wave(requests)), strict=True):
            text = self._decoded(said)
            if len(said) >= 2 and text:
                start = len(prompt.tokens)
                talk.messages.append(assistant(text))
                talk.done = Rendered(
                    [*prompt.tokens, *said], [*prompt.answers, (start, start + len(said))]
                )

    def _talk(self, kind: str) -> Talk:
        opening = str(self.rng.choice(np.array(KINDS[kind].openings, dtype=object)))
        fixed = KINDS[kind].temperature
        return Talk(
            kind, self._temperature() if fixed is None else fixed, KINDS[kind].length, opening
        )

    def _temperature(self) -> float:
        return float(self.rng.choice(TEMPERATURES, p=WEIGHTS))

    def _about(self, talk: Talk, texts: list[Talk]) -> str:
        """A message over texts of this wave; its question is one that a text among them answers."""
        fewest, most = KINDS[talk.kind].material
        count = min(len(texts), int(self.rng.integers(fewest, most + 1)))
        chosen = [texts[i] for i in self.rng.choice(len(texts), size=count, replace=False)]
        material = _joined((one.messages[-1]["content"] for one in chosen), KINDS[talk.kind].words)
        question = chosen[int(self.rng.integers(count))].messages[-2]["content"]
        return talk.opening.replace(TEXT, material).replace(QUESTION, question)

    def _wave(self, requests: list[Request]) -> Wave:
        self.waves += 1
        return Wave(requests, [*self.seed, self.waves])

    def _decoded(self, tokens: list[int]) -> str:
        return self.chat.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _joined(texts: Iterable[str], words: int) -> str:
    """Text after text, so many words of each."""
    return "\n".join(" ".join(text.split()[:words]) for text in texts)


def _is_material(talk: Talk) -> bool:
    words = len(talk.messages[-1]["content"].split())
    return (
        talk.kind in MATERIAL
        and talk.temperature <= WARMEST_MATERIAL
        and words >= SHORTEST_MATERIAL
    )
