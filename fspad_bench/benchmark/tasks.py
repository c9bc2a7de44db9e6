"""Tasks: a card, its samples from one of several sources, and the metric that scores its outputs.

- A card is YAML, with lm-eval's key names where they exist. Its templates run in a sandbox (see
  `templates`).
- Sources: `hub` (the real data at a pinned revision), `spec-bench=FILE`, a JSONL file of the
  user, or `bundled` (written for this suite). `auto` is resolved once, at the start of a run.
- Every record names the source and the hash of exactly these prompts and answers: `gsm8k@bundled`
  never passes for gsm8k.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fspad_bench.benchmark import hub
from fspad_bench.benchmark.cards import Card, read_card
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.paths import data_folder, user_path
from fspad_bench.util.text import ONE_A_LINE, is_text, json_lines

HUB_SAMPLES = 80
SPEC_BENCH = "spec-bench="
RESERVED = ("auto", "hub", "bundled", "spec-bench")  # sources that are no files


@dataclass(frozen=True)
class Question:
    """The user's turns of one sample, and the accepted answers to the last turn: none where nothing
    is scored. `category` is what the data file says, or empty.
    """

    id: str
    turns: list[str]
    answers: list[str]
    category: str = ""


Scorer = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
"""Ids of questions and their outputs -> figures, the headline first."""


@dataclass(frozen=True)
class TaskData:
    """A card with its samples, in the order of the run.

    `scorer`: how its outputs are scored, where not by the card's metric.
    """

    card: Card
    source: str
    sha256: str
    questions: list[Question]
    scorer: Scorer | None = None


def card_names() -> dict[str, str]:
    """Return every task and its title. Reads the cards and imports nothing heavy.

    A package's task that cannot be used is left out, with a note.
    """
    titles = {name: read_card(path).title for name, path in _built_in().items()}
    for name in registry.claims(registry.TASKS):
        try:
            titles[name] = load_card(name).title
        except BenchError as error:
            registry.leave_out(error)
    return titles


def load_card(name: str) -> Card:
    """Return a built-in card, one whose path an entry point names, or that of a file `*.yaml`."""
    built_in = _built_in()
    plugins = registry.claims(registry.TASKS)
    if name in built_in and name in plugins:
        raise BenchError(
            f"the task '{name}' is built in, and {plugins[name][0]} claims its name",
            "rename the other one, or uninstall its package",
        )
    if name in plugins:
        return read_card(_card_path(name))
    if name in built_in:
        return read_card(built_in[name])
    path = user_path(name)
    if path.suffix in (".yaml", ".yml"):
        return read_card(path)
    raise BenchError(f"unknown task '{name}'", near(name, [*built_in, *plugins]))


def check_names(cards: Sequence[Card]) -> None:
    """Raise BenchError for two tasks of one name: their rows would read as one."""
    names = [card.task for card in cards]
    for name in names:
        if names.count(name) > 1:
            raise BenchError(
                f"two tasks are called '{name}'", "name one of them, or give each a run of its own"
            )


def resolve_source(wanted: str, tasks: Sequence[Card]) -> dict[str, str]:
    """Return the source of each task.

    `auto` is the hub where it answers, and the bundled samples elsewhere. Raises BenchError for
    another source than a task's only one.
    """
    own = {card.task: card.source for card in tasks if card.source}
    others = [card for card in tasks if not card.source]
    if wanted != "auto":
        for task, source in own.items():
            raise BenchError(
                f"{task} has its own data ({source}), not {wanted}",
                "leave --data out, or run the other tasks apart",
            )
        return {card.task: wanted for card in others}
    reachable = bool(others) and hub.is_reachable()
    sources = {c.task: "hub" if reachable and c.dataset_path else "bundled" for c in others}
    return own | sources


def tasks_of(wanted: str) -> list[str]:
    """Return every task that has samples in a source: what `all` stands for."""
    cards = {name: load_card(name) for name in card_names()}
    sources = resolve_source(wanted, list(cards.values()))
    return [name for name, card in cards.items() if _has(card, sources[card.task])]


def _has(card: Card, source: str) -> bool:
    """Return whether a task has samples in a source; a user's file is taken for one that it has."""
    if source == "hub":
        return bool(card.dataset_path)
    if source == "bundled":
        return card.bundled is not None
    return bool(card.spec_bench) or not source.startswith(SPEC_BENCH)


def load(card: Card, source: str, limit: int | None) -> TaskData:
    """Return the samples of a task: `limit` of them, evenly spaced, or all."""
    return chosen(card, _label(source), _questions(card, source), limit)


def chosen(card: Card, label: str, questions: list[Question], limit: int | None) -> TaskData:
    """Return a task with `limit` of its questions, evenly spaced, or all; `label` is its source."""
    if limit is not None and limit < len(questions):
        questions = [questions[i * len(questions) // limit] for i in range(limit)]
    _check_ids(card, questions)
    content = json.dumps([(q.id, q.turns, q.answers) for q in questions], ensure_ascii=False)
    return TaskData(card, label, hashlib.sha256(content.encode()).hexdigest(), questions)


def prompts_of(sources: Sequence[str]) -> dict[str, list[str]]:
    """Return `task@source` -> every turn of its questions, for each source that has the task."""
    prompts = {}
    for name in card_names():
        card = load_card(name)
        for source in sources:
            if not _has(card, source):
                continue
            questions = load(card, source, None).questions
            prompts[f"{name}@{source}"] = [turn for q in questions for turn in q.turns]
    return prompts


def _check_ids(card: Card, questions: list[Question]) -> None:
    """Raise BenchError for an id used twice: records tell samples apart by it."""
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise BenchError(
                f"two samples of {card.task} are called '{question.id}'",
                "give each sample its own `id`",
            )
        seen.add(question.id)


def _label(source: str) -> str:
    if source.startswith(SPEC_BENCH):
        return SPEC_BENCH.rstrip("=")
    if source in ("hub", "bundled"):
        return source
    name = Path(source).name
    # a file of such a name is not the data that goes by it
    return f"./{name}" if name in RESERVED else name


def _questions(card: Card, source: str) -> list[Question]:
    if source == "bundled":
        return [_from_doc(card, doc, where) for where, doc in read_jsonl(_bundled(card))]
    if source == "hub":
        return _from_hub(card)
    if source.startswith(SPEC_BENCH):
        return _from_spec_bench(card, user_path(source.removeprefix(SPEC_BENCH)))
    path = user_path(source)
    if not path.exists() and ("=" in source or not path.suffix):
        raise BenchError(
            f"unknown data source '{source}'",
            "give auto, hub, bundled, spec-bench=FILE, or a JSONL file",
        )
    return [_from_doc(card, doc, where) for where, doc in read_jsonl(path)]


def _bundled(card: Card) -> Path:
    """Return the file of the samples that ship. Raises BenchError where none do."""
    if card.bundled is None:
        on_hub = "its data are on the hub: --data hub with a network, or --data FILE.jsonl"
        own = "give its prepared data: --data FILE.jsonl"
        raise BenchError(
            f"no samples of {card.task} are bundled", on_hub if card.dataset_path else own
        )
    return card.bundled


def read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (file:line, object) of every line.

    Raises BenchError for a file that is missing, empty, or not JSONL.
    """
    if path.is_dir() and path != Path():
        raise BenchError(f"{path} is a folder", "give the path of a JSONL file in it")
    if not path.is_file():
        raise BenchError(
            f"no such data file: {path}", "give the path of a JSONL file, or --data bundled"
        )
    docs = list(json_lines(path))
    for where, doc in docs:
        if not isinstance(doc, dict):
            raise BenchError(f"{where}: not a JSON object", ONE_A_LINE)
    if not docs:
        raise BenchError(f"{path} is empty", ONE_A_LINE)
    return docs


def _from_doc(card: Card, doc: dict[str, Any], where: str) -> Question:
    """Return the question of a document, by the card's templates or its own `turns`.

    Null fields count as missing.
    """
    from fspad_bench.benchmark import templates

    doc = {name: value for name, value in doc.items() if value is not None}
    if "turns" in doc:
        turns = doc["turns"]
    else:
        turns = [templates.render(template, doc, where) for template in card.doc_to_text]
    _check_turns(turns, where)
    if card.placeholder and any(card.placeholder in turn for turn in turns):
        raise BenchError(
            f"{where}: the question is a placeholder: {card.placeholder:.40}...",
            f"prepare the data of {card.task} with its authors' tool first",
        )
    answers: list[str] = []
    if card.score and "turns" not in doc:
        answers = _accepted(templates.evaluate(card.doc_to_target, doc, where), where)
    elif card.score:
        answers = _accepted(doc.get("answers"), where)
    field = "question_id" if "question_id" in doc and "id" not in doc else "id"
    name = doc.get(field, hashlib.sha256("\n".join(turns).encode()).hexdigest()[:12])
    return Question(_id(name, field, where), turns, answers, _category(doc))


def _check_turns(turns: Any, where: str) -> None:
    if not (isinstance(turns, list) and turns and all(map(_is_filled, turns))):
        raise BenchError(
            f"{where}: `turns` is not a list of texts: {str(turns)[:60]!r}",
            'write it such as {"turns": ["Hello!"]}',
        )


def _is_filled(value: object) -> bool:
    return isinstance(value, str) and is_text(value) and bool(value.strip())


def _id(name: Any, field: str, where: str) -> str:
    """Return a sample's name, a text or a whole number. Raises BenchError for any other value."""
    is_number = isinstance(name, int) and not isinstance(name, bool)
    if not (is_number or _is_filled(name)):
        raise BenchError(
            f"{where}: `{field}` is neither a text nor a whole number: {str(name)[:60]!r}",
            "name the sample, or leave the field out",
        )
    return str(name)


def _category(doc: dict[str, Any]) -> str:
    """Return the category that a document names; any other value of that field names none."""
    category = doc.get("category", "")
    return category if _is_filled(category) else ""


def _accepted(answers: Any, where: str) -> list[str]:
    """Return the accepted answers: a text or a number, a list of them, or SQuAD's dictionary.

    Raises BenchError for any other value.
    """
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        answers = answers["text"]  # {"text": [...], "answer_start": [...]}
    every = answers if isinstance(answers, list | tuple) else [answers]
    for answer in every:
        is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
        if answer is not None and not is_number and not is_text(answer):
            raise BenchError(
                f"{where}: an answer is neither a text nor a number: {str(answer)[:60]!r}",
                'write it such as {"answers": ["4", "four"]}',
            )
    return [str(answer) for answer in every if answer is not None]


def _from_spec_bench(card: Card, path: Path) -> list[Question]:
    """Read Spec-Bench's question file: `turns` are whole prompts, `reference` comes in three
    shapes.
    """
    rows = [
        (where, doc)
        for where, doc in read_jsonl(path)
        if _field(doc, "category", where) in card.spec_bench
    ]
    if not rows:
        raise BenchError(
            f"{path} holds no question of {card.task}",
            f"its categories are {', '.join(card.spec_bench)}",
        )
    return [_from_spec_bench_row(card, doc, where) for where, doc in rows]


def _from_spec_bench_row(card: Card, doc: dict[str, Any], where: str) -> Question:
    turns = _field(doc, "turns", where)
    _check_turns(turns, where)
    answers = _accepted(_first_turns(doc.get("reference")), where) if card.score else []
    name = _id(_field(doc, "question_id", where), "question_id", where)
    return Question(name, turns, answers, _category(doc))


def _field(doc: dict[str, Any], name: str, where: str) -> Any:
    if name not in doc:
        raise BenchError(f"{where}: lacks the field '{name}'", "give Spec-Bench's question.jsonl")
    return doc[name]


def _first_turns(reference: Any) -> Any:
    """Return the answers to the first turn: a reference is one text or, turn by turn, a list."""
    return next(iter(reference), None) if isinstance(reference, list) else reference


def _from_hub(card: Card) -> list[Question]:
    """Return the real data at the card's revision: the rows with the lowest sha256 of their first
    turn.
    """
    kept = hub.kept_rows(card)
    rows = {}
    questions = {}
    for row in kept or hub.rows(card):
        question = _from_doc(card, {**row, "id": None}, card.dataset_path)
        if question.id not in questions:  # some data sets repeat rows
            questions[question.id] = question
            rows[question.id] = row
    taken = sorted(questions.values(), key=_first_turn_hash)[:HUB_SAMPLES]
    if not kept:
        hub.keep(card, [rows[question.id] for question in taken])
    return taken


def _first_turn_hash(question: Question) -> str:
    return hashlib.sha256(question.turns[0].encode()).hexdigest()


def _card_path(name: str) -> Path:
    """Return the path of a card that a package registered. Raises BenchError if it is none."""
    value = registry.resolve(registry.TASKS, name)
    if not isinstance(value, str | Path):
        raise BenchError(
            f"the task '{name}' stands for {value!r:.60}, not for the path of a card",
            "register the path of a YAML file",
        )
    return Path(value)


def _built_in() -> dict[str, Path]:
    return {path.stem: path for path in sorted(data_folder("tasks").glob("*.yaml"))}
