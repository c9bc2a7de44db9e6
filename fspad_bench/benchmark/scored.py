"""Scores of rows, from the recorded tokens and the task's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fspad_bench.benchmark import scoring, tasks
from fspad_bench.benchmark.record import Records, Sample, Score
from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import described
from fspad_bench.util.terminal import note


def check_answers(data: tasks.TaskData) -> None:
    """Raise BenchError where the metric cannot read an answer: better before the measuring than
    after it.
    """
    answers = [question.answers for question in data.questions if question.answers]
    if data.card.score and answers:
        try:
            scoring.score(data.card.score, [""] * len(answers), answers)
        except ValueError as error:
            raise BenchError(
                f"{data.card.task}@{data.source}: {error}", "correct the answers in the data"
            ) from error


def scores(
    data: tasks.TaskData, records: Records, text: Callable[[Sequence[int]], str]
) -> Iterator[Score]:
    """Yield the scores of every row of a task that has answers; `text` decodes tokens.

    A row that the metric cannot score has none, with a note.
    """
    if not (data.card.score or data.scorer):
        return
    last_turns = {(q.id, len(q.turns) - 1) for q in data.questions if q.answers}
    for key in records.keys.values():
        if key.task != data.card.task:
            continue
        samples = _scored(key.hash, records.samples, last_turns)
        if samples:
            texts = [text(sample.tokens) for sample in samples]
            ids = [sample.sample for sample in samples]
            try:
                yield Score(key.hash, _figures(data, ids, texts), len(samples))
            except (BenchError, ValueError) as error:  # a package's metric: the run is not lost
                note(f"note: no score of {key.decoder} on {data.card.task}: {described(error)}")


def _figures(data: tasks.TaskData, ids: list[str], texts: list[str]) -> dict[str, float]:
    """Return the figures of these questions' outputs."""
    if data.scorer:
        return data.scorer(ids, texts)
    answers = {question.id: question.answers for question in data.questions}
    return scoring.score(data.card.score, texts, [answers[name] for name in ids])


def _scored(key: str, samples: Sequence[Sample], last_turns: set[tuple[str, int]]) -> list[Sample]:
    """Return the latest generation of the last turn of each sample that has answers."""
    own = [s for s in samples if s.key == key and not s.error]
    return list({s.sample: s for s in own if (s.sample, s.turn) in last_turns}.values())
