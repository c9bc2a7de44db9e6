"""All guards of a run: what they look at before, during and after each decoder's turns.

- Everything here runs between turns, off every clock.
- What a guard holds against a decoder is told in words (`findings`), once for each row.
- A decoder that changes the target while it is built ends the run, before anything is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter

from fspad_bench.benchmark.guards.code import CodeGuard
from fspad_bench.benchmark.guards.files import FilesGuard, opened_files
from fspad_bench.benchmark.guards.machine import MachineGuard
from fspad_bench.benchmark.guards.state import StateGuard
from fspad_bench.benchmark.guards.target import TargetGuard
from fspad_bench.benchmark.guards.threads import ThreadsGuard
from fspad_bench.benchmark.record import Finding, Records
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.errors import BenchError

GUARDS = ("target", "machine", "threads", "state", "files", "audit")
OF_DECODERS = ("machine", "threads", "state")  # held against each row of a decoder
SHARE = 0.01  # of a run's time, for looking at the target again and again


@dataclass
class Turn:
    """One turn of a decoder; `others`: the cores that other decoders' threads used meanwhile."""

    others: float = 0.0


class Watch:
    """The guards of a run, made when the target is loaded and no decoder exists yet.

    `prompts` are asked of vanilla now and at the end; `code` is what of this package was loaded
    before any decoder's module was.
    """

    def __init__(
        self, target: TransformersTarget, prompts: Sequence[list[int]], tokens: int, code: CodeGuard
    ) -> None:
        self.code = code
        self.target = TargetGuard(target, prompts, tokens)
        self.machine = MachineGuard()
        self.threads = ThreadsGuard()
        self.state = StateGuard(target)
        self.files = FilesGuard()
        self.found: dict[str, dict[str, str]] = defaultdict(dict)  # label -> guard -> words
        self.written: set[tuple[str, str]] = set()
        self.opened: dict[str, set[str]] = defaultdict(set)  # by label: files not declared
        self.written_files: dict[str, set[str]] = defaultdict(set)  # by key
        self.look_seconds = 0.0  # of the last look at the target
        self.looked = perf_counter()

    @contextmanager
    def building(self, label: str, built: list[Decoder]) -> Iterator[None]:
        """Watch the construction of a decoder, which is appended to `built`.

        Raises BenchError where the target is another one afterwards.
        """
        before = len(built)
        with self._turn(label, lambda: built[before:]):
            yield
        changed = self.code.changed() or self.target.changed()
        if changed:
            raise BenchError(
                f"{label} changed the target for every decoder while it was built: {changed}",
                "a decoder reads the target; it changes a copy of its own",
            )

    @contextmanager
    def turn(self, decoder: Decoder) -> Iterator[Turn]:
        """Watch a turn of a decoder: its preparation, or one generation."""
        with self._turn(decoder.label, lambda: [decoder]) as turn:
            yield turn

    @contextmanager
    def _turn(self, label: str, decoders: Callable[[], list[Decoder]]) -> Iterator[Turn]:
        turn = Turn()
        self.threads.before_turn(label)
        self.files.begin()
        try:
            yield turn
        finally:
            turn.others = self.threads.after_turn(label)
            changed = self.machine.restore()
            if changed:
                text = f"it left {', '.join(changed)} changed; restored after its turn"
                self.found[label].setdefault("machine", text)
            self.opened[label].update(self.files.end(lambda: _declared(decoders())))

    def finish(self, decoders: Sequence[Decoder]) -> None:
        """Look back at a whole run, and ask again what was asked before."""
        self.look_back(decoders)
        if self.target.answers_otherwise():
            self._blame_all(decoders, "vanilla's answers to the warm-up prompts")
        for decoder in decoders:
            with self.turn(decoder):
                differing = self.state.differing(decoder)
            if differing:
                self.found[decoder.label]["state"] = (
                    f"{differing} prompts asked again got other drafts than before, though its "
                    "scope is `prompt`: it keeps state across prompts, or draws at random"
                )

    def look_back(self, decoders: Sequence[Decoder]) -> None:
        """Note what a run shows without another generation, be it whole or not."""
        self._look_at_target(decoders)
        for decoder in decoders:
            self._check_threads(decoder)

    def between(self, decoders: Sequence[Decoder]) -> None:
        """Look at the target where that takes no more than `SHARE` of the time.

        A process that is killed cannot look back.
        """
        if perf_counter() - self.looked > self.look_seconds / SHARE:
            with suppress(MemoryError, RuntimeError):  # no memory: there will be another look
                self._look_at_target(decoders)

    def replayed_otherwise(self, decoder: Decoder) -> None:
        """Note a generation that was repeated after an interruption and took other steps."""
        self.found[decoder.label]["state"] = (
            "the run was interrupted, and generations that it had learned from took other steps "
            "when they were repeated: it does not learn from the prompts alone"
        )

    def recorded(self, known: Records) -> None:
        """Take over what a record holds against decoders; it is not written again.

        A changed target ended with its process.
        """
        for finding in known.findings:
            self.written.add((finding.key, finding.guard))
            self.written_files[finding.key].update(finding.files)
            if finding.key in known.keys:
                label = known.keys[finding.key].decoder
                self.opened[label].update(finding.files)
                if finding.guard in OF_DECODERS:
                    self.found[label].setdefault(finding.guard, finding.text)

    def is_new(self, key: str, guard: str) -> bool:
        """Return whether nothing of this guard is written for a row, as it will be now."""
        is_new = (key, guard) not in self.written
        self.written.add((key, guard))
        return is_new

    def findings(self, label: str, key: str) -> Iterator[Finding]:
        """Yield what is held against a decoder's row and was not yielded for it before."""
        for guard, text in self.found[label].items():
            if self.is_new(key, guard):
                yield Finding(key, guard, text)
        files = self.opened[label] - self.written_files[key]
        if files:
            self.written_files[key] |= files
            yield Finding(key, "files", opened_files(files), sorted(files))

    def _blame_all(self, decoders: Sequence[Decoder], changed: str) -> None:
        text = f"during the run the target was changed for every decoder: {changed}"
        for decoder in decoders:
            self.found[decoder.label].setdefault("target", text)

    def _look_at_target(self, decoders: Sequence[Decoder]) -> None:
        began = perf_counter()
        changed = self.code.changed() or self.target.changed()
        self.looked = perf_counter()
        self.look_seconds = self.looked - began
        if changed:
            self._blame_all(decoders, changed)

    def _check_threads(self, decoder: Decoder) -> None:
        """Note the threads that a decoder's turns left behind."""
        cores = self.threads.disturbance(decoder.label)
        if cores:
            text = f"its threads used {cores:.2f} cores in the turns of others"
            self.found[decoder.label]["threads"] = text


def _declared(decoders: Sequence[Decoder]) -> list[object]:
    """Return the values of all options and settings, some of which name files."""
    values = [value for decoder in decoders for value in decoder.given.values()]
    for decoder in decoders:
        with suppress(BenchError):  # its settings raise, which is no matter of files
            values += decoder.options.values()
    return values
