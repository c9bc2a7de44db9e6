"""A task: a card, its samples from one of several sources, and how its outputs are scored.

A card is YAML with lm-eval's key names where they exist. Where samples come from is never guessed twice: `hub` (the
real data at a pinned revision), `spec-bench=FILE`, a JSONL file of the user's, or `bundled` (written for this suite).
The source and a hash of exactly what was asked stand in every record, and `gsm8k@bundled` never passes for gsm8k.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fspad_bench.decoders import registry
from fspad_bench.errors import BenchError, near
from fspad_bench.util.paths import data_folder

HUB_SAMPLES = 80
SPEC_BENCH = "spec-bench="


@dataclass(frozen=True)
class Card:
    """What a task is. `doc_to_text` holds one template a turn; `doc_to_target`, if any, gives the accepted answers."""

    task: str
    title: str
    doc_to_text: list[str]
    doc_to_target: str
    score: str
    max_new_tokens: int
    bundled: Path
    spec_bench: list[str]
    dataset_path: str
    dataset_name: str | None
    test_split: str
    revision: str
    license: str
    version: int


@dataclass(frozen=True)
class Question:
    """The user's turns of one sample and the accepted answers to the last of them (none where nothing is scored)."""

    id: str
    turns: list[str]
    answers: list[str]


@dataclass(frozen=True)
class TaskData:
    """A card with the samples that a run asks of it, in order."""

    card: Card
    source: str
    sha256: str
    questions: list[Question]


def card_names() -> dict[str, str]:
    """Every task and its title; reads the cards, imports nothing heavy."""
    return {name: load_card(name).title for name in [*_built_in(), *registry.names(registry.TASKS)]}


def load_card(name: str) -> Card:
    """A built-in card, one that an entry point names by its path, or any file `*.yaml`."""
    built_in = _built_in()
    other = registry.names(registry.TASKS)
    if name in built_in and name in other:
        raise BenchError(
            f"the task '{name}' is built in, and {other[name]} claims its name", "give it another"
        )
    if name in other:
        return read_card(Path(registry.resolve(registry.TASKS, name)))
    if name not in built_in and (path := Path(name).expanduser()).suffix in (".yaml", ".yml"):
        return read_card(path)
    if name not in built_in:
        raise BenchError(f"unknown task '{name}'", near(name, [*built_in, *other]))
    return read_card(built_in[name])


def read_card(path: Path) -> Card:
    """A YAML file as a card. Raises BenchError naming the key that is missing."""
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
        turns = text["doc_to_text"]
        return Card(
            task=text["task"],
            title=text["title"],
            doc_to_text=[turns] if isinstance(turns, str) else turns,
            doc_to_target=text.get("doc_to_target", ""),
            score=text.get("score", ""),
            max_new_tokens=text["max_new_tokens"],
            bundled=path.parent / text["bundled"],
            spec_bench=text.get("spec_bench", []),
            dataset_path=text.get("dataset_path", ""),
            dataset_name=text.get("dataset_name"),
            test_split=text.get("test_split", ""),
            revision=text.get("revision", ""),
            license=text["license"],
            version=text["metadata"]["version"],
        )
    except KeyError as error:
        raise BenchError(
            f"the card {path} lacks the key {error}", "see tasks/gsm8k.yaml for a whole one"
        ) from error
    except (OSError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BenchError(
            f"cannot read the card {path}: {reason}", "see tasks/gsm8k.yaml for a whole one"
        ) from error


def resolve_source(wanted: str, tasks: Iterable[Card]) -> dict[str, str]:
    """For each task the source it will use. `auto` is the hub where it answers, and what is bundled elsewhere."""
    if wanted != "auto":
        return {card.task: wanted for card in tasks}
    reachable = hub_reachable()
    return {card.task: "hub" if reachable and card.dataset_path else "bundled" for card in tasks}


def hub_reachable(seconds: float = 5.0) -> bool:
    """Whether the hub answers within a few seconds; never asked in offline mode."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.HfApi().dataset_info("openai/gsm8k", timeout=seconds)
    except Exception:  # whatever stands in the way, the answer is no
        return False
    return True


def load(card: Card, source: str, limit: int | None) -> TaskData:
    """The samples of a task: `limit` of them, evenly spaced, or all."""
    questions = _questions(card, source)
    if limit is not None and limit < len(questions):
        questions = [questions[i * len(questions) // limit] for i in range(limit)]
    _check_ids(card, questions)
    content = json.dumps([(q.id, q.turns, q.answers) for q in questions], ensure_ascii=False)
    return TaskData(card, _label(source), hashlib.sha256(content.encode()).hexdigest(), questions)


def _check_ids(card: Card, questions: list[Question]) -> None:
    """Raise BenchError for an id used twice: records know a sample by it."""
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise BenchError(
                f"two samples of {card.task} are called '{question.id}'",
                "give each an `id` of its own",
            )
        seen.add(question.id)


def _label(source: str) -> str:
    if source.startswith(SPEC_BENCH):
        return SPEC_BENCH.rstrip("=")
    return source if source in ("hub", "bundled") else Path(source).name


def _questions(card: Card, source: str) -> list[Question]:
    if source == "bundled":
        return [_from_doc(card, doc, where) for where, doc in read_jsonl(card.bundled)]
    if source == "hub":
        return _from_hub(card)
    if source.startswith(SPEC_BENCH):
        return _from_spec_bench(card, Path(os.path.expanduser(source.removeprefix(SPEC_BENCH))))
    path = Path(os.path.expanduser(source))  # Path.expanduser raises where there is no such user
    if not path.exists() and ("=" in source or not path.suffix):
        raise BenchError(
            f"unknown data source '{source}'",
            "auto, hub, bundled, spec-bench=FILE, or a JSONL file",
        )
    return [_from_doc(card, doc, where) for where, doc in read_jsonl(path)]


def read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every line. Raises BenchError where the file is missing, empty, or not JSONL."""
    if not path.is_file():
        raise BenchError(
            f"no such data file: {path}", "give the path of a JSONL file, or --data bundled"
        )
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            doc = json.loads(line)
        except ValueError as error:
            raise BenchError(f"{where}: not JSON: {error}", "one JSON object a line") from error
        if not isinstance(doc, dict):
            raise BenchError(f"{where}: not a JSON object", "one JSON object a line")
        found.append((where, doc))
    if not found:
        raise BenchError(f"{path} is empty", "one JSON object a line")
    return found


def _from_doc(card: Card, doc: dict[str, Any], where: str) -> Question:
    """A document by the card's templates; a document with `turns` brings its own. A null field is a missing one."""
    doc = {name: value for name, value in doc.items() if value is not None}
    turns = (
        _turns(doc, where)
        if "turns" in doc
        else [_render(template, doc, where) for template in card.doc_to_text]
    )
    answers = _answers(doc, card, where) if card.score else []
    name = str(doc.get("id", hashlib.sha256("\n".join(turns).encode()).hexdigest()[:12]))
    return Question(name, turns, answers)


def _turns(doc: dict[str, Any], where: str) -> list[str]:
    turns = _field(doc, "turns", where)
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, str) and turn.strip() for turn in turns)
    ):
        raise BenchError(
            f"{where}: `turns` is no list of texts: {str(turns)[:60]!r}",
            'such as {"turns": ["Hello!"]}',
        )
    return turns


def _answers(doc: dict[str, Any], card: Card, where: str) -> list[str]:
    if "turns" in doc and "answers" not in doc:
        return []
    found = doc["answers"] if "turns" in doc else _evaluate(card.doc_to_target, doc, where)
    return [str(answer) for answer in found] if isinstance(found, list | tuple) else [str(found)]


def _render(template: str, doc: dict[str, Any], where: str) -> str:
    import jinja2

    try:
        return _template(template).render(doc)
    except (jinja2.UndefinedError, TypeError) as error:
        raise BenchError(f"{where}: {error}", f"the task's prompt is {template!r}") from error


def _evaluate(expression: str, doc: dict[str, Any], where: str) -> Any:
    """A jinja expression as an object, for targets that are lists."""
    import jinja2

    try:
        value = _expression(expression)(doc)
    except jinja2.UndefinedError:  # a part of a part that is missing
        value = None
    if value is None:
        raise BenchError(
            f"{where}: the field of the answer ({expression}) is missing",
            "or score nothing: give `turns`",
        )
    return value


@cache
def _template(text: str) -> Any:
    import jinja2

    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text)


@cache
def _expression(text: str) -> Any:
    import jinja2

    return jinja2.Environment().compile_expression(text)


def _from_spec_bench(card: Card, path: Path) -> list[Question]:
    """Spec-Bench's question file: prompts are baked into `turns`; `reference` comes in three shapes."""
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
    answers = _flat(doc.get("reference")) if card.score else []
    return Question(str(_field(doc, "question_id", where)), _turns(doc, where), answers)


def _field(doc: dict[str, Any], name: str, where: str) -> Any:
    if name not in doc:
        raise BenchError(
            f"{where}: lacks the field '{name}'", "is this Spec-Bench's question.jsonl?"
        )
    return doc[name]


def _flat(reference: Sequence[Any] | None) -> list[str]:
    """`[str]`, or `[[str, ...]]` where several answers are accepted."""
    first = reference if isinstance(reference, str) else (reference or [[]])[0]
    return [str(answer) for answer in first] if isinstance(first, list) else [str(first)]


def _from_hub(card: Card) -> list[Question]:
    """The real data at the card's revision: the rows with the lowest sha256 of their first turn."""
    if not card.dataset_path:
        raise BenchError(
            f"task '{card.task}' has no data set on the hub",
            "use --data bundled or spec-bench=FILE",
        )
    import datasets

    try:
        rows = datasets.load_dataset(
            card.dataset_path, card.dataset_name, split=card.test_split, revision=card.revision
        )
    except Exception as error:  # datasets raises whatever its transport raised
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchError(
            f"cannot load {card.dataset_path}@{card.revision[:7]} from the hub: {reason}",
            "without a network use --data bundled, or spec-bench=FILE",
        ) from error
    made = (_from_doc(card, {**row, "id": None}, card.dataset_path) for row in rows)
    questions = {question.id: question for question in made}.values()  # some data sets repeat rows
    return sorted(questions, key=lambda q: hashlib.sha256(q.turns[0].encode()).hexdigest())[
        :HUB_SAMPLES
    ]


def _built_in() -> dict[str, Path]:
    return {path.stem: path for path in sorted(data_folder("tasks").glob("*.yaml"))}
