"""A target's conversations with itself, in waves of requests for `engine.batch`.

- User messages are sampled at 0.9 after the chat template's user prefix and an opening of their
  kind; embedded texts at 0.8 after an opening alone. Six answers in ten are greedy, the others at
  0.7 and 1.
- A row of a data set is token ids with the spans of the assistant's answers.
- Some conversations are held out from training. They quote each other only, and no other
  conversation quotes them.
- `recipe` names all that decides the data; an unfinished data set grows only under the same recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from fspad_bench.distill.topics import FOLLOW_UPS, KINDS, MATERIAL, QUESTION, TEXT, Kind
from fspad_bench.engine.batch import Answers, Request, Stream, Wave
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.chat import Chat, Message, Rendered, assistant, user
from fspad_bench.util.errors import BenchError

RECIPE_VERSION = 1
"""Raise it when code here, in `engine.batch` or in `models.chat` changes what a seed generates.

Changes of the tables and constants that `recipe` hashes need no new version.
"""

HELD_OUT_EVERY = 33  # one in so many conversations is held out from training
QUESTION_LENGTH = 96
ANSWER_LENGTH = 256
QUESTION_TEMPERATURE = 0.9
TEXT_TEMPERATURE = 0.8
TEXT_LENGTH = 512
TOKENS_A_WORD = 2
SHORTEST_TEXT = 12  # in words, those of its opening included
TEMPERATURES = (0.0, 0.7, 1.0)
WEIGHTS = (0.6, 0.2, 0.2)
SHORTEST_MATERIAL = 40  # in words; shorter answers are not embedded elsewhere
WARMEST_MATERIAL = 0.8  # answers at higher temperatures are too odd to embed

BEGINNING = 40  # characters by which a conversation is named

Row = dict[str, Any]
Text = TypeVar("Text")


def tokenizer_of(target: TransformersTarget) -> PreTrainedTokenizerBase:
    """Return the target's tokenizer. Raise BenchError where it has none."""
    if target.tokenizer is None:
        raise BenchError(f"{target.name} has no tokenizer", "give a target with a chat template")
    return target.tokenizer


def recipe() -> str:
    """Return the version and the hash of the tables that decide the target's own conversations."""
    tables = {
        "kinds": {name: kind._asdict() for name, kind in KINDS.items()},
        "material": MATERIAL,
        "follow-ups": FOLLOW_UPS,
        "held out": HELD_OUT_EVERY,
        "answers": [ANSWER_LENGTH, TEMPERATURES, WEIGHTS],
        "questions": [QUESTION_LENGTH, QUESTION_TEMPERATURE],
        "texts": [TEXT_LENGTH, TEXT_TEMPERATURE, TOKENS_A_WORD, SHORTEST_TEXT],
        "embedded answers": [SHORTEST_MATERIAL, WARMEST_MATERIAL],
    }
    digest = hashlib.sha256(json.dumps(tables).encode()).hexdigest()
    return f"{RECIPE_VERSION}-{digest[:16]}"


@dataclass
class Dialogue:
    """A conversation in the making.

    - `opening`: how the user's next message begins.
    - `pending`: the given user messages that have not been answered yet.
    - `rendered`: its tokens up to the last answer; None while there is no answer.
    """

    kind: str
    temperature: float
    length: int = ANSWER_LENGTH
    opening: str = ""
    held_out: bool | None = None
    messages: list[Message] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    rendered: Rendered | None = None

    @property
    def awaits_answer(self) -> bool:
        return bool(self.messages) and self.messages[-1]["role"] == "user"


def rows(dialogues: Iterable[Dialogue]) -> list[Row]:
    """Return the data set's rows; conversations without an answer have none."""
    return [_row(c, c.rendered) for c in dialogues if c.rendered]


def _row(dialogue: Dialogue, rendered: Rendered) -> Row:
    row = {
        "tokens": rendered.tokens,
        "answers": [list(span) for span in rendered.answers],
        "temperature": dialogue.temperature,
        "kind": dialogue.kind,
    }
    if dialogue.held_out is not None:
        row["held_out"] = dialogue.held_out
    return row


class ConversationGenerator:
    """Generates a target's own conversations, as streams of waves for `answer_streams`.

    Everything that is drawn follows from `seed`. `left_out` names conversations that the chat
    template refuses.
    """

    def __init__(self, target: TransformersTarget, *, seed: Sequence[int]) -> None:
        self.target = target
        self.chat = Chat(tokenizer_of(target), target.stop_ids)
        self.seed = tuple(seed)
        self.left_out: list[str] = []
        self.waves = 0
        self.rng = np.random.default_rng(self.seed)

    def generate(self, count: int) -> Stream[list[Row]]:
        """Return the rows of up to `count` conversations of all kinds.

        A conversation in which the target wrote no message or no answer is left out.
        """
        every = self._draw(count)
        plain = [c for c in every if KINDS[c.kind].material is None]
        reading = yield from self.write_texts([c for c in every if KINDS[c.kind].texts])
        first = [*plain, *reading]
        yield from self.ask([c for c in first if not c.messages])
        yield from self.answer(first)
        quoting = [c for c in every if KINDS[c.kind].material and not KINDS[c.kind].texts]
        self._quote(quoting, [c for c in plain if _is_material(c)])
        yield from self.answer(quoting)
        longer = [c for c in plain if c.rendered and self.rng.random() < FOLLOW_UPS]
        for dialogue in longer:
            dialogue.opening = ""
        yield from self.ask(longer)
        yield from self.answer([c for c in longer if c.awaits_answer])
        return rows(every)

    def _draw(self, count: int) -> list[Dialogue]:
        """Draw kinds, openings, temperatures, and which of the conversations are held out."""
        shares = np.array([kind.share for kind in KINDS.values()])
        kinds = self.rng.choice(list(KINDS), size=count, p=shares / shares.sum())
        dialogues = [self._new_dialogue(str(kind)) for kind in sorted(kinds)]
        chosen = int(self.rng.integers(HELD_OUT_EVERY))
        for index, dialogue in enumerate(dialogues):
            dialogue.held_out = index % HELD_OUT_EVERY == chosen
        return dialogues

    def regenerate(self, scripts: Iterable[list[Message]]) -> Stream[list[Row]]:
        """Generate the answers of given conversations anew, turn by turn; return their rows."""
        dialogues = []
        for script in scripts:
            dialogue = Dialogue("given", self._temperature())
            dialogue.messages = [m for m in script[:1] if m["role"] == "system"]
            dialogue.pending = [m["content"] for m in script if m["role"] == "user"]
            dialogues.append(dialogue)
        while unfinished := [c for c in dialogues if c.pending]:
            for dialogue in unfinished:
                dialogue.messages.append(user(dialogue.pending.pop(0)))
            yield from self.answer(unfinished)
            for dialogue in unfinished:
                if dialogue.awaits_answer:  # the answer was empty, or had no room
                    dialogue.pending = []
        return rows(dialogues)

    def write_texts(self, dialogues: Sequence[Dialogue]) -> Stream[list[Dialogue]]:
        """Write the texts that each conversation is about, outside the template, into its opening.

        Return the conversations all of whose texts are long enough: some targets write nothing
        without a template.
        """
        counts = [self._text_count(c) for c in dialogues]
        owners = [c for c, count in zip(dialogues, counts, strict=True) for _ in range(count)]
        beginnings = [self._choice(KINDS[c.kind].texts) for c in owners]
        openings = [self.chat.tokenizer(beginning)["input_ids"] for beginning in beginnings]
        requests = [
            Request(opening, TEXT_TEMPERATURE, _text_length(KINDS[owner.kind]))
            for owner, opening in zip(owners, openings, strict=True)
        ]
        answers: Answers = yield self._wave(requests)
        texts = iter([self._decode(o + a) for o, a in zip(openings, answers, strict=True)])
        complete = []
        for dialogue, count in zip(dialogues, counts, strict=True):
            own = [next(texts) for _ in range(count)]
            kind = KINDS[dialogue.kind]
            dialogue.opening = dialogue.opening.replace(TEXT, _joined(own, kind.words))
            if min(len(text.split()) for text in own) >= SHORTEST_TEXT:
                complete.append(dialogue)
                if not kind.asks:
                    dialogue.messages.append(user(dialogue.opening))
        return complete

    def ask(self, dialogues: Sequence[Dialogue]) -> Stream[None]:
        """Append each user's next message: the opening and the target's continuation of it.

        A conversation without room in the context, or whose continuation is empty, gets none.
        """
        asking = []
        openings = []
        requests = []
        for dialogue in dialogues:
            opening = self.chat.tokenizer(dialogue.opening, add_special_tokens=False)
            prefix = self._accepted(dialogue, self.chat.user_prefix)
            if prefix is None:
                continue
            prompt = [*prefix, *opening["input_ids"]]
            if len(prompt) + QUESTION_LENGTH <= self.target.max_length:
                asking.append(dialogue)
                openings.append(opening["input_ids"])
                requests.append(Request(prompt, QUESTION_TEMPERATURE, QUESTION_LENGTH))
        answers: Answers = yield self._wave(requests)
        for dialogue, opening, answer in zip(asking, openings, answers, strict=True):
            text = self._decode([*opening, *answer])
            if len(text) > len(dialogue.opening.strip()):
                dialogue.messages.append(user(text))

    def answer(self, dialogues: Sequence[Dialogue]) -> Stream[None]:
        """Append the assistant's next message where the user waits for one.

        A conversation without room in the context, or whose answer is empty, gets none.
        """
        fitting = []
        requests = []
        for dialogue in [c for c in dialogues if c.awaits_answer]:
            prompt = self._accepted(dialogue, self.chat.prompt)
            if prompt is None:
                continue
            if len(prompt.tokens) + dialogue.length <= self.target.max_length:
                fitting.append((dialogue, prompt))
                requests.append(Request(prompt.tokens, dialogue.temperature, dialogue.length))
        answers: Answers = yield self._wave(requests)
        for (dialogue, prompt), answer in zip(fitting, answers, strict=True):
            text = self._decode(answer)
            if len(answer) >= 2 and text:
                start = len(prompt.tokens)
                span = (start, start + len(answer))
                dialogue.messages.append(assistant(text))
                dialogue.rendered = Rendered([*prompt.tokens, *answer], [*prompt.answers, span])

    def _accepted(self, dialogue: Dialogue, render: Callable[[list[Message]], Text]) -> Text | None:
        """Return a conversation as the template renders it, None where it refuses it."""
        try:
            return render(dialogue.messages)
        except BenchError as error:
            begins = dialogue.messages[0]["content"][:BEGINNING] if dialogue.messages else ""
            self.left_out.append(f"{begins!r}: {error.message}")
            return None

    def _new_dialogue(self, name: str) -> Dialogue:
        kind = KINDS[name]
        opening = self._choice(kind.openings)
        temperature = self._temperature() if kind.temperature is None else kind.temperature
        return Dialogue(name, temperature, kind.length, opening)

    def _temperature(self) -> float:
        return float(self.rng.choice(TEMPERATURES, p=WEIGHTS))

    def _choice(self, texts: Sequence[str]) -> str:
        return str(self.rng.choice(np.array(texts, dtype=object)))

    def _text_count(self, dialogue: Dialogue) -> int:
        return int(self.rng.integers(*_material(dialogue), endpoint=True))

    def _quote(self, dialogues: list[Dialogue], sources: list[Dialogue]) -> None:
        """Give each conversation a message about answers of `sources`.

        Held-out conversations quote held-out ones only, and the others quote the others.
        """
        for dialogue in dialogues:
            own_side = [c for c in sources if c.held_out == dialogue.held_out]
            if own_side:
                dialogue.messages.append(user(self._message_about(dialogue, own_side)))

    def _message_about(self, dialogue: Dialogue, sources: list[Dialogue]) -> str:
        """Return a message that embeds some answers and repeats the question of one of them."""
        fewest, most = _material(dialogue)
        count = min(len(sources), int(self.rng.integers(fewest, most + 1)))
        chosen = [sources[i] for i in self.rng.choice(len(sources), size=count, replace=False)]
        answers = [source.messages[-1]["content"] for source in chosen]
        question = chosen[int(self.rng.integers(count))].messages[-2]["content"]
        text = _joined(answers, KINDS[dialogue.kind].words)
        return dialogue.opening.replace(TEXT, text).replace(QUESTION, question)

    def _wave(self, requests: list[Request]) -> Wave:
        self.waves += 1
        return Wave(requests, [*self.seed, self.waves])

    def _decode(self, tokens: list[int]) -> str:
        text = self.chat.tokenizer.decode(tokens, skip_special_tokens=True)
        return str(text).strip()


def _joined(texts: Iterable[str], words: int) -> str:
    """Join the first `words` words of each text, one text a line."""
    return "\n".join(" ".join(text.split()[:words]) for text in texts)


def _text_length(kind: Kind) -> int:
    return min(TEXT_LENGTH, TOKENS_A_WORD * kind.words)


def _material(dialogue: Dialogue) -> tuple[int, int]:
    """Return the least and greatest number of texts that the conversation embeds."""
    material = KINDS[dialogue.kind].material
    assert material is not None
    return material


def _is_material(dialogue: Dialogue) -> bool:
    """Whether the conversation's answer may be embedded in others."""
    return (
        dialogue.rendered is not None
        and dialogue.kind in MATERIAL
        and dialogue.temperature <= WARMEST_MATERIAL
        and len(dialogue.messages[-1]["content"].split()) >= SHORTEST_MATERIAL
    )
