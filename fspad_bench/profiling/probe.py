"""What decoders' steps cost on this machine beside the target's forwards, by a short run.

- Bundled samples of each task, first turns only; vanilla and the decoders take turns.
- Only costs are taken from it, never what was accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.record import VANILLA
from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.border import blamed
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.drafts.sizing.costs import Costs, measure_target
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.chat import Chat, user
from fspad_bench.profiling.cost_models import Overhead
from fspad_bench.profiling.projection import Place
from fspad_bench.util.errors import BenchError
from fspad_bench.util.progress import Progress

PROMPTS = 2  # of each task
TOKENS = 48


class Probe(NamedTuple):
    """The target's forwards here, and what each row's steps cost beside them; vanilla's stand under
    its own label.
    """

    forwards: Costs
    overheads: Mapping[Place, Overhead]

    def vanilla(self, place: Place) -> Overhead:
        return self.overheads[place._replace(decoder=VANILLA)]


def probe(
    target: TransformersTarget,
    places: Sequence[Place],
    options: Mapping[str, dict[str, str]],
) -> Probe:
    """Time the steps of these rows' decoders. Raises BenchError for one that cannot be built."""
    labels = list(dict.fromkeys([VANILLA, *(place.decoder for place in places)]))
    decoders = [build_decoder(label, target, dict(options)) for label in labels]
    for decoder in decoders:
        decoder.whole()  # asked in every step: what is charged is what asking takes
        with blamed(decoder.label, "its preparation"):
            decoder.prepare(None)
    settings = sorted({(place.task, place.temperature) for place in places})
    overheads: dict[Place, Overhead] = {}
    with Progress("timing what steps cost", len(settings)) as progress:
        for task, temperature in settings:
            overheads |= _of_setting(target, decoders, task, temperature)
            progress.advance()
    return Probe(measure_target(target), overheads)


def _of_setting(
    target: TransformersTarget, decoders: Sequence[Decoder], task: str, temperature: float
) -> dict[Place, Overhead]:
    """Time the steps of one task at one temperature."""
    chat = Chat(target.tokenizer, target.stop_ids)
    questions = tasks.load(tasks.load_card(task), "bundled", PROMPTS).questions
    limit = Limit(TOKENS, target.stop_ids)
    generations: dict[str, list[Generation]] = {decoder.label: [] for decoder in decoders}
    for number in range(-1, len(questions)):  # the first once before: a warm-up
        prompt = chat.prompt([user(questions[max(0, number)].turns[0])]).tokens
        for decoder in decoders:
            sampler = Sampler(temperature, stream=f"probe {number}")
            with blamed(decoder.label, "a generation"):
                generation = decoder.generate(target, sampler, prompt, limit)
            if number >= 0:
                generations[decoder.label].append(generation)
    return {
        Place(label, task, temperature): _overhead(label, made)
        for label, made in generations.items()
    }


def _overhead(label: str, generations: Sequence[Generation]) -> Overhead:
    """Return the mean costs of a step. Raises BenchError where they are not known."""
    if not any(generation.committed for generation in generations):
        raise BenchError(
            f"{label}: its answers to the bundled samples end at once",
            "there are no steps to time: choose another task",
        )
    overhead = Overhead.of(generations)
    if overhead is None:
        raise BenchError(
            f"{label}: the parts of its steps are not timed here",
            "project to a CPU, or give a shape and a device with --shape",
        )
    return overhead
