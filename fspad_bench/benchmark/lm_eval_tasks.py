"""Generative tasks of lm-eval as tasks of a run: `lm_eval:NAME`, or `lm_eval:FILE.yaml`.

- Prompts are lm-eval's own text, few-shot examples included, without a chat template; stop strings,
  filters and metrics are the task's. A sample's few-shot examples are those of a whole run.
- A task brings its own data: no `--data` takes its place. Its card is known by the hash of its
  settings and lm-eval's version, its data by their content.
- Temperature, top-k and top-p are the run's, whatever the task says.
- lm-eval takes seconds to import: nothing here does before such a task is named.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.cards import Card
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import user_path
from fspad_bench.util.strangers import contained, message_of
from fspad_bench.util.terminal import note

PREFIX = "lm_eval:"
INSTALL = "pip install 'fspad-bench[lm-eval]'"
GENERATIVE = "generate_until"
NOT_TEXT = ("doc_to_image", "doc_to_audio")
MAX_NEW_TOKENS = 256  # lm-eval's, where a task names no number
FEWSHOT_SEED = 1234  # lm-eval's
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("do_sample", "temperature", "top_p", "top_k")
NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "use_cache": True}
IN_PERCENT = ("exact_match", "acc")  # metrics of 0 to 1


@dataclass(frozen=True)
class HarnessCard(Card):
    """The card of a task of lm-eval, with the task itself, loaded."""

    harness: Any = field(default=None, compare=False)


def card_of(name: str) -> Card:
    """Return the card of a task of this suite, or of lm-eval where its name begins so.

    Raises BenchError for a task that cannot be loaded, or whose answers are not generated text.
    """
    if not name.startswith(PREFIX):
        return tasks.load_card(name)
    if importlib.util.find_spec("lm_eval") is None:
        raise BenchError(f"{name} needs lm-eval, which is not installed", INSTALL)
    with quiet("lm_eval"):
        task = _task(name, name.removeprefix(PREFIX))
        _check(name, task)
        return _card(name, task)


def load(card: Card, source: str, limit: int | None) -> tasks.TaskData:
    """Return the samples of a task: `limit` of them, evenly spaced, or all."""
    if not isinstance(card, HarnessCard):
        return tasks.load(card, source, limit)
    task = card.harness
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with quiet("lm_eval"), _contained(card.task, "build the prompts of"):
        task.build_all_requests()
    asked = {str(instance.doc_id): instance for instance in task.instances}
    questions = []
    for name, instance in asked.items():
        target = json.dumps(task.doc_to_target(instance.doc), default=str)
        questions.append(tasks.Question(name, [instance.args[0]], [target]))
    data = tasks.chosen(card, source, questions, limit)
    return replace(data, scorer=Scorer(card, asked))


class Scorer:
    """lm-eval's figures of some answers: stop strings cut off, then each filter and each metric."""

    def __init__(self, card: HarnessCard, asked: dict[str, Any]) -> None:
        self.card = card
        self.asked = asked

    def __call__(self, ids: Sequence[str], outputs: Sequence[str]) -> dict[str, float]:
        """Return `metric,filter` -> figure, the task's first one first.

        Exact match and accuracy are in percent, other metrics on lm-eval's own scale.
        """
        with quiet("lm_eval"), _contained(self.card.task, "score the answers to"):
            answered = [
                replace(self.asked[name], resps=[self._cut(output)], filtered_resps={})
                for name, output in zip(ids, outputs, strict=True)
            ]
            task = self.card.harness
            task._instances = answered
            task.apply_filters()
            return dict(self._figures(task, answered))

    def _cut(self, output: str) -> str:
        from lm_eval.models.utils import postprocess_generated_text

        return postprocess_generated_text(output, self.card.until, None)

    def _figures(self, task: Any, answered: Sequence[Any]) -> Iterator[tuple[str, float]]:
        aggregations = task.aggregation()
        for name in answered[0].filtered_resps:
            values: dict[str, list[Any]] = {}
            for instance in answered:
                result = task.process_results(instance.doc, [instance.filtered_resps[name]])
                for metric, value in result.items():
                    values.setdefault(metric, []).append(value)
            for metric, items in values.items():
                figure = float(aggregations.get(metric, fmean)(items))
                yield f"{metric},{name}", 100 * figure if metric in IN_PERCENT else figure


def _task(name: str, own: str) -> Any:
    """Load a task by its name or the path of its YAML file."""
    from lm_eval.tasks import TaskManager

    path = _file(own)
    manager = TaskManager(include_defaults=path is None)
    if path is None and own not in manager.all_tasks:
        close = get_close_matches(own, manager.all_subtasks, n=3)
        known = f"did you mean {' or '.join(close)}? " if close else ""
        raise BenchError(f"lm-eval has no task '{own}'", f"{known}`lm-eval ls tasks` lists them")
    if path is None and own not in manager.all_subtasks:
        raise BenchError(f"{name} is a group of tasks", "name one of its tasks")
    with _contained(name, "load"):
        source = path or manager.task_index[own].yaml_path
        _check_kind(name, _settings(source) if source else {})  # before data are loaded
        loaded = manager.load([str(path or own)])["tasks"]
    if len(loaded) != 1:
        raise BenchError(f"{name} is a group of tasks", "name one of its tasks")
    return next(iter(loaded.values()))


def _file(own: str) -> Path | None:
    """Return the file of a task: the user's own, or lm-eval's where a file has the task's name.

    None where only lm-eval's index of all its files tells, which takes it a while to build. Raises
    BenchError for a file that is not there.
    """
    import lm_eval.tasks

    path = user_path(own)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise BenchError(
                f"no such task file: {path}", f"write {PREFIX}NAME or {PREFIX}FILE.yaml"
            )
        return path
    folder = Path(lm_eval.tasks.__file__).parent
    files = folder.rglob(f"{own}.yaml") if own.isidentifier() else []
    named = [file for file in files if _settings(file).get("task") == own]
    return named[0] if len(named) == 1 else None


def _settings(path: Path) -> dict[str, Any]:
    """Return what a task's file says, with what it includes; its functions are not imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(path, resolve_func=False, recursive=True))


def _check_kind(name: str, settings: Mapping[str, Any]) -> None:
    """Raise BenchError for a kind of task that has no place in a run."""
    kind = settings.get("output_type") or GENERATIVE
    repeats = settings.get("repeats", 1)
    refused = {
        f"its answers are no generated text ({kind})": kind != GENERATIVE,
        f"it asks for {repeats} answers to each prompt": repeats != 1,
        "it runs code that the target writes": bool(settings.get("unsafe_code")),
        "its prompts are not text alone": any(settings.get(key) for key in NOT_TEXT),
    }
    for reason, is_so in refused.items():
        if is_so:
            raise BenchError(
                f"{name} cannot be run here: {reason}",
                "ask lm-eval for it itself, with --model fspad-bench",
            )


def _check(name: str, task: Any) -> None:
    """Raise BenchError for a task that a run here cannot ask, or cannot score."""
    config = task.config
    _check_kind(name, {**vars(config), "output_type": task.OUTPUT_TYPE})
    for setting, value in (config.generation_kwargs or {}).items():
        known = setting in ("until", *LENGTHS, *SAMPLING) or NEUTRAL.get(setting, ...) == value
        if not known:
            raise BenchError(
                f"{name} wants the generation setting {setting}={value!r:.40}, which no run "
                "takes from a task",
                "copy its YAML file without it, and name the copy; penalties are flags of run",
            )
    metrics = getattr(task, "_metric_fn_list", {})
    missing = [metric for metric, function in metrics.items() if function is None]
    if missing and config.process_results is None:
        raise BenchError(
            f"{name}: its metric {missing[0]} is not at hand", "install what lm-eval asks for"
        )


def generation_settings(given: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return generation settings under lm-eval's own names, `until` a list of texts; `length` is
    the number of tokens where none is given.

    Raises BenchError for values that are none.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    try:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), length))
    except (TypeError, ValueError) as error:
        raise BenchError(
            f"generation settings that cannot be read: {message_of(error)}",
            "max_gen_toks is a whole number, temperature a number",
        ) from error
    if settings["max_gen_toks"] < 1:
        raise BenchError(f"max_gen_toks={settings['max_gen_toks']} is out of range", "at least 1")
    settings["until"] = [text for text in settings["until"] if text not in (None, "")]
    for text in settings["until"]:
        if not isinstance(text, str):
            raise BenchError(f"the stop string {text!r:.40} is no text", "put it into quotes")
    return settings


def _card(name: str, task: Any) -> HarnessCard:
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    settings = generation_settings(task.config.generation_kwargs or {}, MAX_NEW_TOKENS)
    if settings.get("do_sample"):
        note(f"note: {name} asks for sampled answers; here --temperature decides")
    version = _version()
    facts = {name: value for name, value in task.dump_config().items() if name != "dataset_kwargs"}
    content = json.dumps([version, facts], sort_keys=True, default=str)
    return HarnessCard(
        task=f"{PREFIX}{task.task_name}",
        title=f"{task.task_name} of lm-eval",
        doc_to_text=[],
        doc_to_target="",
        score="",
        max_new_tokens=settings["max_gen_toks"],
        bundled=None,
        spec_bench=[],
        dataset_path=str(task.config.dataset_path or ""),
        dataset_name=task.config.dataset_name,
        test_split=str(task.config.test_split or ""),
        revision="",
        license="that of its data",
        placeholder="",
        version=0,
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        until=settings["until"],
        source=f"lm_eval-{version}-v{task.VERSION}",
        is_chat=False,
        harness=task,
    )


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


@contextmanager
def _contained(name: str, what: str) -> Iterator[None]:
    """Let whatever a task's own code or data raise be a BenchError."""
    try:
        with contained():
            yield
    except BenchError:
        raise
    except Exception as error:  # a task's code, `datasets`, a transport: whatever they raise
        reason = message_of(error)[:240] or type(error).__name__
        if isinstance(error, StopIteration):  # `datasets`, of a file without a line
            reason = "its data are empty"
        raise BenchError(
            f"lm-eval cannot {what} {name}: {reason}",
            "correct its file or its data; without a network name a task file whose data are local "
            "(docs/lm-eval.md)",
        ) from error


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a logger of lm-eval tell errors alone."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
