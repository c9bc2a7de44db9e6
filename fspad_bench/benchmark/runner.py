"""A run: every decoder on the same prompts, interleaved, in random order, vanilla among them, each fact recorded.

For each prompt and temperature all decoders take one turn; what one of them left out (an error) drops its pair. An
output that differs from vanilla's is audited at once. Turn 2 of a conversation is asked on top of vanilla's answer to
turn 1, so all decoders see the same context. Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fspad_bench import __version__
from fspad_bench.benchmark import scoring
from fspad_bench.benchmark import tasks as task
from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.record import (
    SCHEMA,
    Audit,
    Key,
    RecordFile,
    Records,
    Sample,
    Score,
    lines,
)
from fspad_bench.core.loop import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Method, build, check_options
from fspad_bench.engine.target import ContextError
from fspad_bench.errors import BenchError
from fspad_bench.models.load import load_target
from fspad_bench.util import machine
from fspad_bench.util.progress import Progress

VANILLA = "vanilla"
WARM_UP = (
    "Describe a walk along a river in autumn.",
    "List three uses of a paper clip, one a line.",
)
WARM_UP_TOKENS = 24
TURN_TOKENS = 64  # what a chat template may write around a turn
SOFTWARE = (
    "version",
    "packages",
    "commit",
)  # of a record's origin: what must not change within a row


@dataclass(frozen=True)
class Plan:
    """What was asked for. Equal plans are the same run: an unfinished record of an equal plan is resumed."""

    decoders: list[str]
    tasks: list[str]
    target: str
    options: dict[str, dict[str, str]]
    data: str
    limit: int | None
    temperatures: list[float]
    top_p: float
    top_k: int
    seed: int
    max_new_tokens: int | None
    dtype: str | None
    device: str
    threads: int | None
    log_samples: bool


class Unit(NamedTuple):
    """What is interleaved: one question of a task at one temperature."""

    data: task.TaskData
    question: task.Question
    temperature: float


class Runner:
    """Loads what a plan names (every mistake in it shows here, before anything is measured), then runs it."""

    def __init__(self, plan: Plan, output: Path) -> None:
        cards = [task.load_card(name) for name in plan.tasks]
        check_options(plan.decoders, plan.options)
        check_folder(output)
        self.plan = plan
        self.output = output
        for temperature in plan.temperatures:
            self._sampler(temperature)
        self.record, header = self._open(cards)
        self.data = [task.load(card, header["sources"][card.task], plan.limit) for card in cards]
        for data in self.data:
            check_answers(data)
        if plan.threads:
            torch.set_num_threads(plan.threads)
        self.target = load_target(plan.target, device=plan.device, dtype=plan.dtype)
        if not self.target.tokenizer.chat_template:
            raise BenchError(
                f"the tokenizer of {plan.target} has no chat template", "name an instruct model"
            )
        self.methods = [build(label, self.target, plan.options) for label in plan.decoders]
        self.longest = self._check_context()
        self.auditor = Auditor(self.target)

    def run(self) -> Path:
        """Measure what is missing, score, and return the record's path."""
        try:
            self._run()
        finally:
            self.record.release()
        return self.record.path

    def _run(self) -> None:
        known = Records.read(self.record.path) if self.record.path.exists() else Records()
        units = list(self._units())
        todo = [(u, missing) for u in units if (missing := self._missing(u, known))]
        if todo:
            self._settle_costs(known)
            self._warm_up()
        with Progress("generations", len(units), start=len(units) - len(todo)) as progress:
            for unit, labels in todo:
                progress.advance(
                    0, f"{unit.data.card.task} {unit.question.id} T={unit.temperature:g}"
                )
                self._measure(unit, labels)
                progress.advance()
        self._score()
        self.record.end()

    def _settle_costs(self, known: Records) -> None:
        """Within a record trees are sized by one set of costs, those of its beginning or this machine's of now, however
        far the machine goes from them."""
        for method in self.methods:
            before = known.costs.get(method.label)
            found = getattr(method.decoder, "costs", None)
            if found and not before:
                self.record.line({"kind": "costs", "decoder": method.label, "seconds": found})
            elif before and hasattr(method.decoder, "resize"):
                method.decoder.resize(before)

    def _open(self, cards: list[task.Card]) -> tuple[RecordFile, dict[str, Any]]:
        """The newest unfinished record of an equal plan, or a new one."""
        plan = asdict(self.plan)
        now = datetime.now(UTC)
        origin = {
            "version": __version__,
            "started": now.isoformat(timespec="seconds"),
            **machine.provenance(),
        }
        for path in sorted(self.output.glob("*.jsonl"), reverse=True):
            header = _header(path)
            if header.get("plan") == plan and not Records.read(path).complete:
                if other := [name for name in SOFTWARE if header.get(name) != origin.get(name)]:
                    print(f"not resuming {path}: another {other[0]} began it", file=sys.stderr)
                    continue
                print(f"resuming {path}", file=sys.stderr)
                return RecordFile.reopen(path), header
        header = {"plan": plan, "sources": task.resolve_source(self.plan.data, cards)} | origin
        name = f"{now:%Y%m%dT%H%M%S}-{self.plan.target.strip('/').split('/')[-1]}-{secrets.token_hex(2)}.jsonl"
        return _Lazy(self.output / name, header), header

    def _units(self) -> Iterator[Unit]:
        for data in self.data:
            for question in data.questions:
                for temperature in self.plan.temperatures:
                    yield Unit(data, question, temperature)

    def _key(self, method: Method, unit: Unit) -> Key:
        plan = self.plan
        card = unit.data.card
        return Key(
            target=self.target.name,
            target_identity=self.target.identity,
            task=card.task,
            data_source=unit.data.source,
            data_sha256=unit.data.sha256,
            decoder=method.label,
            options=method.options,
            temperature=unit.temperature,
            top_p=plan.top_p,
            top_k=plan.top_k,
            seed=plan.seed,
            max_new_tokens=self._room(card),
            dtype=str(self.target.dtype).removeprefix("torch."),
            forward=self.target.forward_name,
            device=str(self.target.device),
            threads=torch.get_num_threads(),
            machine=machine.describe(self.target.gpu),
            reset="per-prompt",
            version=__version__,
            verification=method.verification,
        )

    def _missing(self, unit: Unit, known: Records) -> list[Method]:
        """The methods that have not finished this unit; vanilla goes along with any of them."""
        turns = len(unit.question.turns)
        done: dict[str, set[int]] = {}
        for sample in known.samples:
            if sample.sample == unit.question.id:
                done.setdefault(sample.key, set()).add(sample.turn)
        missing = [m for m in self.methods if len(done.get(self._key(m, unit).hash, ())) < turns]
        return [m for m in self.methods if m in missing or m.label == VANILLA] if missing else []

    def _check_context(self) -> int:
        """How many tokens the longest conversation may come to, answers of full length included.

        Raises BenchError where not one prompt fits the target; those that alone do not are errors of their own.
        """
        needed = [
            len(self._prompt([{"role": "user", "content": question.turns[0]}]))
            + self._room(data.card)
            for data in self.data
            for question in data.questions
        ]
        if min(needed) > self.target.max_length:
            text = f"no prompt fits: with its new tokens the shortest takes {min(needed)}"
            raise BenchError(
                f"{text}, the context of {self.plan.target} is {self.target.max_length}",
                "lower --max-new-tokens, or name another task or target",
            )
        whole = [
            len(self._prompt([{"role": "user", "content": "\n".join(question.turns)}]))
            + len(question.turns) * (self._room(data.card) + TURN_TOKENS)
            for data in self.data
            for question in data.questions
        ]
        return min(max(whole), self.target.max_length)

    def _room(self, card: task.Card) -> int:
        return self.plan.max_new_tokens or card.max_new_tokens

    def _warm_up(self) -> None:
        # a longer prompt later on would have a device's graphs captured anew, on the clock
        self.target.reserve(self.longest)
        for text in WARM_UP:
            prompt = self._prompt([{"role": "user", "content": text}])
            for method in self.methods:
                for temperature in self.plan.temperatures:
                    with suppress(
                        Exception
                    ):  # a decoder that fails here fails again, on the record
                        method.generate(
                            self.target, self._sampler(temperature), prompt, Limit(WARM_UP_TOKENS)
                        )

    def _sampler(self, temperature: float, stream: str = "warm-up") -> Sampler:
        return Sampler(temperature, self.plan.top_k, self.plan.top_p, self.plan.seed, stream)

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        template = self.target.tokenizer.apply_chat_template
        return list(template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])

    def _measure(self, unit: Unit, methods: list[Method]) -> None:
        """Every turn of a question by every method, under one round's name."""
        name = secrets.token_hex(4)
        messages = []
        for turn, text in enumerate(unit.question.turns):
            messages.append({"role": "user", "content": text})
            vanilla = self._turn(unit, turn, name, self._prompt(messages), methods)
            messages.append({"role": "assistant", "content": self._text(vanilla)})

    def _turn(
        self, unit: Unit, turn: int, name: str, prompt: list[int], methods: list[Method]
    ) -> list[int]:
        """One generation a method, in random order; returns vanilla's tokens."""
        sampler = self._sampler(
            unit.temperature, f"{unit.data.card.task}\n{unit.question.id}\n{turn}\n0"
        )
        order = random.Random(f"{name}{turn}").sample(methods, len(methods))
        done: dict[str, Sample] = {
            m.label: self._generate(unit, turn, name, m, sampler, prompt) for m in order
        }
        for method in methods:
            self.record.key(self._key(method, unit))
            if self._key(method, unit).identical:
                self._audit(unit, done[method.label], done[VANILLA], sampler, prompt)
        for method in methods:  # last, as only a recorded sample is not measured again
            self.record.add(done[method.label])
        return done[VANILLA].tokens

    def _generate(
        self, unit: Unit, turn: int, name: str, method: Method, sampler: Sampler, prompt: list[int]
    ) -> Sample:
        key = self._key(method, unit)
        about = {"key": key.hash, "sample": unit.question.id, "turn": turn, "round": name}
        about |= {
            "prompt_tokens": len(prompt),
            "prompt_sha256": hashlib.sha256(str(prompt).encode()).hexdigest()[:16],
        }
        limit = Limit(key.max_new_tokens, self.target.stop_ids)
        load = machine.Load()
        if self.target.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.target.device)
        try:
            made = method.generate(self.target, sampler, prompt, limit)
        except ContextError as error:
            return Sample(**about, error=error.message)
        except (
            Exception
        ) as error:  # a decoder's failure is a fact of the record, not the end of the run
            traceback.print_exc()
            return Sample(**about, error=f"{type(error).__name__}: {error}")
        texts = (
            {"prompt": self._text(prompt), "text": self._text(made.tokens)}
            if self.plan.log_samples
            else {}
        )
        return Sample(
            **about,
            tokens=made.tokens,
            committed=made.committed,
            drafted=made.drafted,
            forwards=made.forwards,
            prefill_seconds=made.prefill_seconds,
            decode_seconds=made.decode_seconds,
            draft_seconds=made.draft_seconds,
            score_seconds=made.score_seconds,
            other_load=load.others(),
            peak_memory=self._peak_memory(),
            **texts,
        )

    def _audit(
        self, unit: Unit, made: Sample, vanilla: Sample, sampler: Sampler, prompt: list[int]
    ) -> None:
        if made.error or vanilla.error or made.tokens == vanilla.tokens:
            return
        limit = Limit(self._room(unit.data.card), self.target.stop_ids)
        try:
            found = self.auditor.audit(sampler, prompt, vanilla.tokens, made.tokens, limit)
        except (
            RuntimeError,
            MemoryError,
        ) as error:  # no room for the precise copy: the row will read `unverified`
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"{made.sample}: this difference could not be audited: {reason}", file=sys.stderr)
            return
        self.record.add(Audit(made.key, made.sample, made.turn, made.round, *found))

    def _score(self) -> None:
        """Scores of every row, from the recorded tokens and the task's answers."""
        records = Records.read(self.record.path)
        for data in self.data:
            metric = data.card.score
            answers = {q.id: q.answers for q in data.questions if q.answers}
            for key in (k for k in records.keys.values() if k.task == data.card.task and metric):
                latest = {s.sample: s for s in records.samples if s.key == key.hash and not s.error}
                scored = [s for s in latest.values() if s.sample in answers]
                if scored:
                    texts = [self._text(s.tokens) for s in scored]
                    found = scoring.score(metric, texts, [answers[s.sample] for s in scored])
                    self.record.add(Score(key.hash, found))

    def _text(self, tokens: list[int]) -> str:
        return self.target.tokenizer.decode(tokens, skip_special_tokens=True)

    def _peak_memory(self) -> int | None:
        """Of this generation, in bytes; on a CPU only that of the whole process is known, which says nothing."""
        on_device = self.target.device.type == "cuda"
        return torch.cuda.max_memory_allocated(self.target.device) if on_device else None


class _Lazy(RecordFile):
    """A new record, whose file appears with its first line: a plan that fails to load leaves nothing behind."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        super().__init__(path)
        self.header = {"kind": "run", "schema": SCHEMA, **header}

    def line(self, content: dict[str, Any]) -> None:
        if self.header:
            header = self.header
            self.header = None
            super().line(header)
            self.hold()
        super().line(content)


def check_answers(data: task.TaskData) -> None:
    """Raise BenchError where the metric cannot read an answer: better before the measuring than after it."""
    answers = [question.answers for question in data.questions if question.answers]
    if data.card.score and answers:
        try:
            scoring.score(data.card.score, [""] * len(answers), answers)
        except ValueError as error:
            raise BenchError(
                f"{data.card.task}@{data.source}: {error}", "mend the answers in the data"
            ) from error


def check_folder(output: Path) -> None:
    """Raise BenchError where no record could be written: better before the measuring than after it."""
    nearest = next(
        path for path in (output.absolute(), *output.absolute().parents) if path.exists()
    )
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise BenchError(
            f"cannot write records to {output}: see {nearest}", "give another folder with --output"
        )


def _header(path: Path) -> dict[str, Any]:
    """The first line of a record; nothing for any other file."""
    try:
        return next(lines(path), {})
    except BenchError:
        return {}
