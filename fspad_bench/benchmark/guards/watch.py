"""All guards of a run: what they look at before, during and after each decoder's turns.

- Everything here runs between turns, off every clock.
- What a guard holds against a decoder is told in words (`findings`), once for each row.
- A decoder that changes the target while it is built ends the run, before anything is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fspad_bench.benchmark.guards.code import CodeGuard
from fspad_bench.benchmark.guards.files import FilesGuard
from fspad_bench.benchmark.guards.machine import MachineGuard
from fspad_bench.benchmark.guards.state import StateGuard
from fspad_bench.benchmark.guards.target import TargetGuard
from fspad_bench.benchmark.guards.threads import ThreadsGuard
from fspad_bench.benchmark.record import Finding
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError

GUARDS = ("target", "machine", "threads", "state", "files")
MOST_FILES = 3  # that a finding names


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
        self.opened: dict[str, set[str]] = defaultdict(set)
        self.found: dict[str, dict[str, str]] = defaultdict(dict)  # label -> guard -> words
        self.written: set[tuple[str, str]] = set()

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
            self.opened[label].update(self.files.end(lambda: _declared(decoders())))
            changed = self.machine.restore()
            if changed:
                text = f"it left {', '.join(changed)} changed; restored after its turn"
                self.found[label].setdefault("machine", text)

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
        changed = self.code.changed() or self.target.changed()
        if changed:
            self._blame_all(decoders, changed)
        for decoder in decoders:
            self._check_traces(decoder)

    def findings(self, label: str, key: str) -> Iterator[Finding]:
        """Yield what is held against a decoder's row and was not yielded for it before."""
        for guard, text in self.found[label].items():
            if (key, guard) not in self.written:
                self.written.add((key, guard))
                yield Finding(key, guard, text)

    def _blame_all(self, decoders: Sequence[Decoder], changed: str) -> None:
        text = f"during the run the target was changed for every decoder: {changed}"
        for decoder in decoders:
            self.found[decoder.label].setdefault("target", text)

    def _check_traces(self, decoder: Decoder) -> None:
        """Note the threads and files that a decoder's turns left behind."""
        found = self.found[decoder.label]
        cores = self.threads.disturbance(decoder.label)
        if cores:
            found["threads"] = f"its threads used {cores:.2f} cores in the turns of others"
        files = sorted(self.opened[decoder.label])
        if files:
            more = f" and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
            names = ", ".join(files[:MOST_FILES])
            found["files"] = f"it opened files that it does not declare: {names}{more}"


def _declared(decoders: Sequence[Decoder]) -> list[object]:
    """Return the values of all options and settings, some of which name files."""
    return [v for d in decoders for v in (*d.given.values(), *d.options.values())]
