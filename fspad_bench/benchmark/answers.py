"""Records as the answer files of Spec-Bench (hemingkx/Spec-Bench): a file per decoder, a line per
question.

- Its script then finds the mean accepted tokens that our rows call `tokens_per_step`:
  `accept_lengths` hold one entry per full forward of the target, 0 for a forward that committed
  nothing. The prefill and its token belong to no step.
- `wall_time` includes the prefill. `new_tokens` are all tokens of an output, its stop included.
- Spec-Bench has no errors: a question of which a turn failed or is missing is left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, NamedTuple

from fspad_bench.benchmark.definitions import accept_lengths
from fspad_bench.benchmark.generations import latest
from fspad_bench.benchmark.record import Key, Records, Sample
from fspad_bench.benchmark.tasks import load_card
from fspad_bench.decoders.label import Label
from fspad_bench.util.errors import BenchError

OF_A_TASK = ("task", "data_sha256", "card_sha256", "max_new_tokens")  # fields of a key
FIRST_ID = 81  # of MT-bench's questions in Spec-Bench, ten per category in the order of the card
PER_CATEGORY = 10
ID_LENGTH = 22
DIGITS = 18  # of a number of 64 bits
HASH_LENGTH = 8

Text = Callable[[Key, Sample], str]


class Asked(NamedTuple):
    """A question of a task, by its id."""

    task: str
    id: str

    @property
    def number(self) -> int | None:
        """The id as a number, None where it is none, or one that JSON does not hold."""
        is_number = self.id.isdecimal() and len(self.id) <= DIGITS
        return int(self.id) if is_number else None


class Measured(NamedTuple):
    """A key with the last generation of each question and turn."""

    key: Key
    samples: list[Sample]


class AnswerFile(NamedTuple):
    """A file's name, its lines, the questions left out, and the mean of its accepted tokens."""

    name: str
    lines: list[dict[str, Any]]
    left_out: list[Asked]

    @property
    def mean_accepted(self) -> float | None:
        lengths = [n for line in self.lines for n in line["choices"][0]["accept_lengths"]]
        return sum(lengths) / len(lengths) if lengths else None


def answer_files(records: Records, text: Text) -> list[AnswerFile]:
    """Return the answer files of records, vanilla's among them; `text` gives an output's text.

    A file has no lines where every question is left out.

    Raises BenchError where one file would hold a question twice.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in records.keys}
    for sample in records.samples:
        samples[sample.key].append(sample)
    groups: dict[str, list[Measured]] = {}
    for name, key in records.keys.items():
        if not samples[name]:  # the run was interrupted
            continue
        first = [sample for sample in latest(samples[name]) if not sample.repeat]
        groups.setdefault(_group(key), []).append(Measured(key, first))
    taken = Counter(_name(rows[0].key) for rows in groups.values())
    turns = _turns(records)
    files = []
    for group, rows in groups.items():
        name = _name(rows[0].key)
        if taken[name] > 1:  # another machine, other options
            name += f"-{hashlib.sha256(group.encode()).hexdigest()[:HASH_LENGTH]}"
        files.append(_file(name, rows, turns, text, _timestamp(records)))
    return files


def _file(
    name: str,
    rows: Sequence[Measured],
    turns: dict[Asked, set[int]],
    text: Text,
    timestamp: float,
) -> AnswerFile:
    lines: dict[Asked, dict[str, Any]] = {}
    left_out: list[Asked] = []
    for key, samples in rows:
        for question, answer in _by_question(key, samples).items():
            if question in lines or question in left_out:
                raise BenchError(
                    f"{name}: question {question.id} of {question.task} was answered in two rows",
                    "give the record of one run",
                )
            if any(s.error for s in answer) or {s.turn for s in answer} != turns[question]:
                left_out.append(question)
                continue
            lines[question] = {
                "question_id": question.id if question.number is None else question.number,
                "category": category(question),
                "answer_id": hashlib.sha256(f"{name}\n{question}".encode()).hexdigest()[:ID_LENGTH],
                "model_id": name,
                "choices": [_choice(answer, [text(key, sample) for sample in answer])],
                "tstamp": timestamp,
            }
    return AnswerFile(name, [lines[question] for question in sorted(lines, key=_order)], left_out)


def _choice(turns: Sequence[Sample], texts: list[str]) -> dict[str, Any]:
    return {
        "index": 0,
        "turns": texts,
        "decoding_steps": [sample.forwards for sample in turns],
        "new_tokens": [len(sample.tokens) + (sample.overshoot or 0) for sample in turns],
        "wall_time": [sample.prefill_seconds + sample.decode_seconds for sample in turns],
        "accept_lengths": [count for sample in turns for count in accept_lengths(sample)],
    }


def category(question: Asked) -> str:
    """Return Spec-Bench's category of a question; a task that it does not have is its own."""
    try:
        categories = load_card(question.task).spec_bench
    except BenchError:  # a card of another installation
        categories = []
    if not categories:
        return question.task
    number = 0 if question.number is None else question.number - FIRST_ID
    return categories[min(max(0, number // PER_CATEGORY), len(categories) - 1)]


def _by_question(key: Key, samples: Iterable[Sample]) -> dict[Asked, list[Sample]]:
    """Return the turns of each question, in order."""
    questions: dict[Asked, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.turn):
        questions.setdefault(Asked(key.task, sample.sample), []).append(sample)
    return questions


def _turns(records: Records) -> dict[Asked, set[int]]:
    """Return the turns that any decoder was asked of each question."""
    turns: dict[Asked, set[int]] = {}
    for sample in records.samples:
        question = Asked(records.keys[sample.key].task, sample.sample)
        turns.setdefault(question, set()).add(sample.turn)
    return turns


def _group(key: Key) -> str:
    """Return what the rows of one file share: all but what is the task's."""
    shared = {name: value for name, value in asdict(key).items() if name not in OF_A_TASK}
    return json.dumps(shared, sort_keys=True, default=str)


def _name(key: Key) -> str:
    """Return a file's name, as Spec-Bench calls its models."""
    shown = Label.of(key.decoder).shown
    name = f"{key.target}-{shown}-{key.dtype}-temperature-{key.temperature:g}"
    return re.sub(r"[^\w.@+-]+", "_", name)


def _order(question: Asked) -> tuple[int, str, str]:
    return (question.number or 0, question.task, question.id)


def _timestamp(records: Records) -> float:
    """Return the second in which the first of the runs began, 0 where it is not known."""
    try:
        return datetime.fromisoformat(records.started).timestamp()
    except ValueError:
        return 0.0
