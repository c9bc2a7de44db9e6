"""Run a plan: every decoder on the same prompts, interleaved in random order, with every fact
recorded.

- For each prompt and temperature all decoders take one turn, vanilla among them. A failed
  generation is a fact: it drops its pair and is not repeated when the run is resumed.
- An output that differs from vanilla's is audited at once.
- Turn 2 of a conversation follows vanilla's answer to turn 1, so all decoders see the same
  context. Where vanilla failed, the later turns have no context and are errors for every decoder.
- After an interruption the same command continues where it stopped.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fspad_bench.benchmark import lm_eval_tasks, tasks
from fspad_bench.benchmark.earlier import Conversation, Earlier, Replay
from fspad_bench.benchmark.evidence import Examiner
from fspad_bench.benchmark.failures import Failures
from fspad_bench.benchmark.guards.answers import Sealed
from fspad_bench.benchmark.guards.code import CodeGuard
from fspad_bench.benchmark.guards.machine import MachineGuard
from fspad_bench.benchmark.guards.watch import Watch
from fspad_bench.benchmark.origin import origin_of
from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.prompts import Message, longest_conversation, prompts_of, stop_facts
from fspad_bench.benchmark.record import VANILLA, Key, Records, Sample
from fspad_bench.benchmark.recorded_costs import SHORT_HASH, costs_origin
from fspad_bench.benchmark.resume import check_folder, open_record
from fspad_bench.benchmark.samplers import Samplers
from fspad_bench.benchmark.scored import check_answers, scores
from fspad_bench.benchmark.shards import Shard, together
from fspad_bench.benchmark.units import Prompt, Unit, check_scopes, units
from fspad_bench.benchmark.warm_up import WARM_UP_TOKENS, warm_up, warm_up_prompts
from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Sampler, stream_of
from fspad_bench.decoders.build import Decoder, build_decoder, check_options
from fspad_bench.models.load import load_target
from fspad_bench.util import machine
from fspad_bench.util.errors import BenchError
from fspad_bench.util.memory import free_unreachable, is_out_of_memory
from fspad_bench.util.progress import Progress
from fspad_bench.util.terminal import note


class Runner:
    """Load what a plan names, so that every mistake in it shows before anything is measured; then
    run it.

    A run whose times nobody reads (`timed=False`) neither warms up nor asks prompts again.
    """

    def __init__(self, plan: Plan, output: Path, *, timed: bool = True) -> None:
        code = CodeGuard()  # before a decoder's module is imported
        settings = MachineGuard()
        cards = [lm_eval_tasks.card_of(name) for name in plan.tasks]
        tasks.check_names(cards)
        check_options(plan.decoders, plan.options)
        if changed := settings.restore():
            text = f"note: a decoder's import changed {', '.join(changed)}: restored"
            note(text)
        check_folder(output)
        self.plan = plan
        self.shard = Shard.of(plan.shard)
        self.timed = timed
        self.samplers = Samplers(plan)
        if plan.threads:
            torch.set_num_threads(plan.threads)
        self.record, header = open_record(plan, cards, output)
        sources = header["sources"]
        self.data = [lm_eval_tasks.load(card, sources[card.task], plan.limit) for card in cards]
        for data in self.data:
            check_answers(data)
        self.target = load_target(plan.target, device=plan.device, dtype=plan.dtype)
        self.prompts = prompts_of(self.target, plan.target, cards)
        if self.record.header is not None:
            self.record.header["stop_ids"] = stop_facts(self.target)
        self.origin = origin_of(self.target, self.prompts)
        self.watch = Watch(self.target, warm_up_prompts(self.prompts), WARM_UP_TOKENS, code)
        self.decoders: list[Decoder] = []
        for label in plan.decoders:
            with self.watch.building(label, self.decoders):
                self.decoders.append(build_decoder(label, self.target, plan.options))
                self.decoders[-1].check_sampler(self._sampler(plan.temperatures[0]))
        check_scopes(self.decoders, len(plan.temperatures), plan.repeats, self.shard)
        self.longest = longest_conversation(
            self.data, self.prompts, self._answer_tokens, self.target.max_length
        )
        self.examiner = Examiner(self.target, self.watch)
        self.failures = Failures()
        self.keys: dict[tuple[str, str, str, float], Key] = {}

    def run(self, ready: Callable[[list[Key]], None] | None = None) -> Path:
        """Measure what is missing, score the outputs, and return the record's path.

        `ready` is called with the keys of all rows before anything is measured.
        """
        try:
            self._run(ready)
        finally:
            self.record.release()
        return self.record.path

    def _run(self, ready: Callable[[list[Key]], None] | None) -> None:
        every = list(units(self.data, self.plan.temperatures, self.plan.repeats, self.shard))
        done = self._finished(every)
        if ready:
            keys = (self._key(decoder, unit) for unit in every for decoder in self.decoders)
            ready(list({key.hash: key for key in keys}.values()))
        if self.timed and not all(done):
            self._warm_up()
        with Progress("generations", len(every), start=sum(done)) as progress:
            try:
                for number, (unit, is_done) in enumerate(zip(every, done, strict=True)):
                    progress.advance(0, unit.shown)
                    if is_done:
                        self._take_up(number, unit)
                        continue
                    self._measure(unit)
                    self.watch.between(self.decoders)
                    self._record_findings([unit])
                    progress.advance()
            except KeyboardInterrupt:  # what is known of this part of the run is not lost
                self.watch.look_back(self.decoders)
                self._record_findings(every)
                raise
        self.watch.finish(self.decoders)
        self._record_findings(every)
        if self.shard.parts > 1:
            self.record.end()  # another shard may end meanwhile: whoever looks later sees both
        self._score()
        self.record.end()

    def _finished(self, units: list[Unit]) -> list[bool]:
        """Return of each unit whether all decoders have finished it.

        Where one has not, all are asked again: they are compared on generations that were
        interleaved.
        """
        known = Records.read(self.record.path) if self.record.path.exists() else Records()
        self._prepare(known)
        self.watch.recorded(known)
        earlier = Earlier(known)
        done = [self._is_finished(unit, earlier) for unit in units]
        last = max((number for number, is_done in enumerate(done) if not is_done), default=0)
        self.replay = Replay(earlier, self.target, self.watch, last)
        return done

    def _is_finished(self, unit: Unit, earlier: Earlier) -> bool:
        keys = (self._key(decoder, unit).hash for decoder in self.decoders)
        return all(earlier.has(key, unit.place, len(unit.question.turns)) for key in keys)

    def _take_up(self, number: int, unit: Unit) -> None:
        """Bring the decoders to where a finished unit left them."""
        keys = {decoder.label: self._key(decoder, unit).hash for decoder in self.decoders}
        for decoder in self.decoders:
            own = (keys[decoder.label], keys[VANILLA])
            sampler = partial(self._turn_sampler, unit)
            limit = self._limit(unit.data.card)
            ask = self.prompts.of(unit.data.card)
            asked = Conversation(unit.place, unit.question.turns, *own, sampler, limit, ask)
            self.replay.take_up(number, decoder, asked)

    def _turn_sampler(self, unit: Unit, turn: int) -> Sampler:
        stream = stream_of(unit.data.card.task, unit.question.id, turn)
        return self._sampler(unit.temperature, stream)

    def _limit(self, card: tasks.Card) -> Limit:
        return Limit(self._answer_tokens(card), self.target.stop_ids, self.prompts.stop(card))

    def _prepare(self, known: Records) -> None:
        """Let decoders measure what they need before any clock runs.

        A whole record stands on one set of measurements, however far the machine drifts from them:
        those that it began with, and of a decoder without any there, its own.
        """
        for decoder in self.decoders:
            origin = costs_origin(self.origin, decoder.options)
            recorded = known.costs.get((decoder.label, origin))
            with self.watch.turn(decoder):
                decoder.prepare(recorded)
            if decoder.measurements and not recorded:
                self.record.costs(decoder.label, dict(decoder.measurements), origin)

    def _key(self, decoder: Decoder, unit: Unit) -> Key:
        """Return the key of a decoder's samples of a unit's task and temperature.

        It is resolved once: what a decoder changes later does not split its row.
        """
        place = (decoder.label, unit.data.card.sha256, unit.data.sha256, unit.temperature)
        if place not in self.keys:
            self.keys[place] = self._resolved_key(decoder, unit)
        return self.keys[place]

    def _resolved_key(self, decoder: Decoder, unit: Unit) -> Key:
        card = unit.data.card
        return Key(
            task=card.task,
            card_sha256=card.sha256,
            data_source=unit.data.source,
            data_sha256=unit.data.sha256,
            decoder=decoder.label,
            options=decoder.options,
            verification=decoder.verification,
            scope=decoder.scope,
            temperature=unit.temperature,
            max_new_tokens=self._answer_tokens(card),
            **self.samplers.settings,
            **self.origin,
        )

    def _answer_tokens(self, card: tasks.Card) -> int:
        return self.plan.max_new_tokens or card.max_new_tokens

    def _warm_up(self) -> None:
        # room for the longest prompt now: later, graphs would be captured again, on the clock
        self.target.reserve(self.longest)
        samplers = [self._sampler(temperature) for temperature in self.plan.temperatures]
        warm_up(self.target, self.prompts, self.decoders, samplers, self.watch, WARM_UP_TOKENS)

    def _sampler(self, temperature: float, stream: str = "warm-up") -> Sampler:
        return self.samplers.at(temperature, stream)

    def _measure(self, unit: Unit) -> None:
        """Run every turn of a question with every decoder."""
        name = secrets.token_hex(4)
        messages: list[Message] = []
        for turn, text in enumerate(unit.question.turns):
            messages.append({"role": "user", "content": text})
            try:
                tokens = self.prompts.of(unit.data.card).tokens(messages)
            except BenchError as error:  # the template takes no such conversation
                self._skip_turns(Prompt(unit, turn, name, []), error.message, turn)
                return
            prompt = Prompt(unit, turn, name, tokens)
            vanilla = self._turn(prompt)
            if vanilla.error:
                reason = f"vanilla failed on turn {turn + 1}: this turn has no context"
                self._skip_turns(prompt, reason, turn + 1)
                return
            messages.append({"role": "assistant", "content": self.prompts.text(vanilla.tokens)})

    def _turn(self, prompt: Prompt) -> Sample:
        """Record one generation a decoder, made in random order. Returns vanilla's.

        Vanilla takes a second turn as any decoder does (A/A). Samples are recorded last: a unit is
        finished when they are all there.
        """
        unit = prompt.unit
        sampler = self._turn_sampler(unit, prompt.turn)
        first = Sealed()
        again = Sealed()
        turns = [(decoder, first) for decoder in self.decoders]
        if self.plan.aa:
            turns += [(decoder, again) for decoder in self.decoders if decoder.label == VANILLA]
        order = random.Random(f"{prompt.round}{prompt.turn}").sample(turns, len(turns))
        for decoder, sealed in order:
            own = self._turn_sampler(unit, prompt.turn)  # a decoder may change it
            sealed.put(decoder.label, self._generate(prompt, decoder, own))
        samples = first.opened()
        vanilla = samples[VANILLA]
        for decoder in self.decoders:
            key = self._key(decoder, unit)
            self.record.key(key)
            sample = samples[decoder.label]
            entry = self.examiner.entry(
                key, prompt.tokens, sample, vanilla, sampler, self._limit(unit.data.card)
            )
            if entry is not None:
                self.record.add(entry)
        for sample in again.opened().values():
            self.record.add(sample, kind="aa")
        for decoder in self.decoders:
            self.record.add(samples[decoder.label])
        self._record_findings([unit])
        return vanilla

    def _record_findings(self, units: list[Unit]) -> None:
        """Record what guards hold against the rows of these units, each complaint once a row."""
        for decoder in self.decoders:
            keys = {self._key(decoder, unit).hash for unit in units}
            for key in sorted(keys & self.record.known):
                for finding in self.watch.findings(decoder.label, key):
                    self.record.add(finding)

    def _skip_turns(self, prompt: Prompt, error: str, first: int) -> None:
        """Record an error for each turn of the prompt's question from `first` on."""
        unit = prompt.unit
        for turn in range(first, len(unit.question.turns)):
            for decoder in self.decoders:
                key = self.record.key(self._key(decoder, unit))
                about = Sample(key, unit.question.id, turn, prompt.round, repeat=unit.repeat)
                self.record.add(replace(about, error=error))

    def _generate(self, prompt: Prompt, decoder: Decoder, sampler: Sampler) -> Sample:
        key = self._key(decoder, prompt.unit)
        digest = hashlib.sha256(str(prompt.tokens).encode()).hexdigest()
        about: dict[str, Any] = {
            "key": key.hash,
            "sample": prompt.unit.question.id,
            "turn": prompt.turn,
            "round": prompt.round,
            "prompt_tokens": len(prompt.tokens),
            "prompt_sha256": digest[:SHORT_HASH],
            "category": prompt.unit.question.category,
            "repeat": prompt.unit.repeat,
        }
        limit = self._limit(prompt.unit.data.card)
        load = machine.Load(decoder.processes)
        self.target.forget_peak_memory()
        try:
            with self.watch.turn(decoder) as turn:
                generation = decoder.generate(self.target, sampler, prompt.tokens, limit)
        except Exception as error:  # a failure is recorded and does not end the run
            failure = self.failures.tell(error, decoder, about["sample"])
            is_full = is_out_of_memory(error)
        else:
            failure = ""
            is_full = False
        if is_full:
            free_unreachable()
        if failure:
            return Sample(**about, error=failure)
        other_load = load.others() + turn.others
        if self.timed:
            self.watch.state.note(decoder, sampler, prompt.tokens, limit, generation)
        figures = self._figures(generation)
        texts = self._texts(prompt, generation)
        return Sample(**about, **figures, other_load=other_load, **texts)

    def _figures(self, generation: Generation) -> dict[str, Any]:
        return {
            "tokens": generation.tokens,
            "committed": generation.committed,
            "drafted": generation.drafted,
            "forwards": generation.forwards,
            "partial_forwards": generation.partial_forwards,
            "prefill_forwards": generation.prefill_forwards,
            "claims": generation.claims,
            "prefill_seconds": generation.prefill_seconds,
            "decode_seconds": generation.decode_seconds,
            "draft_seconds": generation.draft_seconds,
            "score_seconds": generation.score_seconds,
            "verify_seconds": generation.verify_seconds,
            "depths": generation.depths,
            "ranks": generation.ranks,
            "refused": generation.refused,
            "overshoot": generation.overshoot or None,
            "peak_memory": self.target.peak_memory(),
        }

    def _texts(self, prompt: Prompt, generation: Generation) -> dict[str, Any]:
        if not self.plan.log_samples:
            return {}
        return {
            "prompt": self.prompts.text(prompt.tokens),
            "text": self.prompts.text(generation.tokens),
        }

    def _score(self) -> None:
        """Record the scores of every row, once all shards of the run are there."""
        paths = together(self.plan, self.record.path)
        if not paths:
            return
        records = Records.read(*paths)
        for data in self.data:
            for score in scores(data, records, self.prompts.text):
                self.record.add(score)
