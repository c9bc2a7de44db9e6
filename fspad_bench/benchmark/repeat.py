"""Repeat a run: its plan, what differs here, and both runs' figures side by side.

- A run is repeated with the plan of its record. Choices that the plan left open, the precision and
  the number of threads, are those that the record's keys say were made.
- Rows are matched by decoder, task and temperature.
- Other questions than the record's are refused unless the user asks for them: nothing else could be
  compared then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from fspad_bench.benchmark.fields import check_fields
from fspad_bench.benchmark.generations import latest
from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.record import SINCE_SCHEMA_2, UPGRADE, VANILLA, Key, Records, Sample
from fspad_bench.benchmark.record_lines import REPAIR, lines
from fspad_bench.benchmark.rows import Row, rows
from fspad_bench.benchmark.tasks import RESERVED, SPEC_BENCH, TaskData
from fspad_bench.benchmark.verdict import shown_verdict
from fspad_bench.decoders.label import Label
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.grid import grid
from fspad_bench.util.machine import cores
from fspad_bench.util.paths import user_path
from fspad_bench.util.provenance import provenance

FILE_HASH = 64  # characters of a sha256
SHOWN = 12  # of them
MATCHED = ("decoder", "task", "temperature")  # fields of a key
OTHER_QUESTIONS = ("data", "limit", "tasks")  # of a plan: the user wants other questions
HEADER = ("decoder", "task", "T", "verdict", "here", "tokens/step", "here", "speedup", "here")
Subject = tuple[str, str, float]
Asked = tuple[str, int, int, str]  # question, turn, repeat, hash of the prompt


class Counts(NamedTuple):
    """Outputs of two rows to the same prompts, and how many of them have equal tokens."""

    shared: int
    equal: int

    def __str__(self) -> str:
        return f"{self.equal} of {self.shared}"


@dataclass(frozen=True)
class Reference:
    """The record of the run to repeat; `header` is its first line."""

    path: Path
    header: dict[str, Any]
    records: Records
    plan: Plan

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read a record. Raises BenchError where it is none, or its plan cannot be repeated."""
        records = Records.read(path)
        if not records.samples:
            raise BenchError(
                f"{path} holds no generation yet",
                "repeat the same `fspad-bench run` command to resume it",
            )
        header = next(lines(path))
        plan = plan_of(path, header.get("plan"))
        return cls(path, header, records, _resolved(plan, header, records))

    @property
    def schema(self) -> int:
        return int(self.header["schema"])

    def changed(self, given: dict[str, Any]) -> Plan:
        """Return the plan with what the user gave in place of its own.

        Options are added to those of the record, of which the ones of other decoders are dropped.
        """
        options = {name: dict(chosen) for name, chosen in self.plan.options.items()}
        for name, chosen in given.get("options", {}).items():
            options[name] = {**options.get(name, {}), **chosen}
        decoders = given.get("decoders", self.plan.decoders)
        known = {prefix for label in decoders for prefix in Label.of(label).option_prefixes}
        own = given.get("options", {})
        options = {name: o for name, o in options.items() if name in known or name in own}
        return replace(self.plan, **{**given, "options": options})

    def check_output(self, output: Path) -> None:
        """Raise BenchError where the run would continue the record that it is compared with."""
        if not self.records.complete and output.absolute() == self.path.absolute().parent:
            raise BenchError(
                f"{self.path} is unfinished, and a run with its plan would continue it",
                "give another folder with --output, or resume it by its own command first",
            )

    def check_file(self, data: str) -> None:
        """Raise BenchError where a source of data is a file that is not here."""
        path = user_path(data.removeprefix(SPEC_BENCH))
        if data in RESERVED or path.is_file():
            return
        hashes = {key.task: key.data_sha256 for key in self.records.keys.values()}
        task, digest = next(iter(hashes.items()))
        more = f", and of {len(hashes) - 1} more tasks" if len(hashes) > 1 else ""
        prefix = SPEC_BENCH if data.startswith(SPEC_BENCH) else ""
        raise BenchError(
            f"the record's data file {path.name} is not here; the sha256 of its questions of "
            f"{task}{more} is {digest}",
            f"give that file with --data {prefix}FILE",
        )

    def check_questions(self, data: Iterable[TaskData], given: Collection[str]) -> None:
        """Raise BenchError for other questions than the record's, unless the user gave them."""
        if set(given) & set(OTHER_QUESTIONS):
            return
        for here in data:
            keys = [key for key in self.records.keys.values() if key.task == here.card.task]
            for key in keys:
                if key.data_sha256 != here.sha256:
                    raise BenchError(
                        f"the questions of {key.task} ({here.source}) are not the record's: their "
                        f"sha256 is {here.sha256}, the record's {key.data_sha256}",
                        "give the record's file with --data, or there the source of these "
                        "questions to repeat the run on them",
                    )

    def blamed(self, error: BenchError) -> BenchError:
        """Return an error of the repeated run, with the hash of the file that it is about."""
        hint = error.hint
        for label, options in self.plan.options.items():
            for name, value in options.items():
                digest = self._option(label, f"{name}_sha256")
                if value and value in error.message and digest:
                    hint = f"give it with -D {label}.{name}=...; the record's has sha256 {digest}"
        return BenchError(f"cannot repeat {self.path.name}: {error.message}", hint)

    def _option(self, label: str, option: str) -> Any:
        """Return the recorded value of a decoder's option, None where there is none."""
        for key in self.records.keys.values():
            if label in Label.of(key.decoder).option_prefixes and option in key.options:
                return key.options[option]
        return None


def plan_of(path: Path, content: Any) -> Plan:
    """Return the plan in the first line of a record. Raises BenchError where it is none."""
    if not isinstance(content, dict):
        raise BenchError(f"{path}:1: the first line holds no plan", REPAIR)
    if unknown := sorted(content.keys() - {field.name for field in fields(Plan)}):
        raise BenchError(f"{path}:1: a plan with '{unknown[0]}', which is not known here", UPGRADE)
    try:
        check_fields(Plan, content)
        return Plan(**{"aa": False, **content})  # a plan that does not say it had no A/A copy
    except (TypeError, ValueError) as error:
        raise BenchError(f"{path}:1: not a plan: {error}", REPAIR) from error


def given_plan(content: Any) -> Plan:
    """Return a plan that a user gives as JSON; vanilla runs without being named.

    Raises ValueError where it is none, and BenchError where it measures nothing.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    known = {field.name: field for field in fields(Plan)}
    if unknown := sorted(content.keys() - known.keys()):
        raise ValueError(f"no field is called '{unknown[0]}': {near(unknown[0], known)}")
    for name, field in known.items():
        if name not in content and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"it has no '{name}'")
    check_fields(Plan, content)
    plan = Plan(**content)
    others = [name for name in plan.decoders if name != VANILLA]
    return replace(plan, decoders=[VANILLA, *others])


def _resolved(plan: Plan, header: dict[str, Any], records: Records) -> Plan:
    """Return a plan with the choices that it left open as the record says they were made.

    More threads than this machine has cores stay open.
    """
    first = next(iter(records.keys.values()))
    threads = plan.threads or first.threads
    return replace(
        plan,
        data=_data(plan, header),
        dtype=plan.dtype or first.dtype,
        threads=threads if threads <= cores() else None,
    )


def _data(plan: Plan, header: dict[str, Any]) -> str:
    """Return a plan's source of data: for `auto` the one that all tasks had.

    It stays `auto` where they had several, or one has data of its own, which `auto` finds again.
    """
    sources = header.get("sources")
    named = set(sources.values()) if isinstance(sources, dict) else set()
    if plan.data != "auto" or named not in ({"hub"}, {"bundled"}):
        return plan.data
    return str(named.pop())


# what differs here


def overridden(reference: Plan, plan: Plan) -> list[str]:
    """Return what the user gave in place of the record's own, a line each."""
    there = asdict(reference)
    return [
        f"{name}: {_shown(there[name])} in the record, given as {_shown(value)}"
        for name, value in asdict(plan).items()
        if value != there[name]
    ]


def differences(reference: Reference, keys: Sequence[Key]) -> list[str]:
    """Return what decides figures and is not as it was, a line each; `keys` are those here."""
    known = _by_subject(reference.records.keys.values())
    here = _by_subject(keys)
    found: dict[str, None] = {}
    for subject, key in here.items():
        if subject in known:
            found |= dict.fromkeys(_key_differences(known[subject], key, reference.schema))
    found |= dict.fromkeys(_package_differences(reference.header))
    missing = _missing(reference)
    if missing:
        found[f"the record does not say: {', '.join(missing)}"] = None
    for subject in here.keys() - known.keys():
        found[f"not in the record: {_name(subject)}"] = None
    return list(found)


def _key_differences(there: Key, here: Key, schema: int) -> Iterable[str]:
    for field in fields(Key):
        old, new = getattr(there, field.name), getattr(here, field.name)
        unrecorded = field.name in SINCE_SCHEMA_2 and not old
        if field.name in MATCHED or old == new or unrecorded:
            continue
        if field.name != "options":
            yield _line(field.name, old, new)
            continue
        for name in sorted(old.keys() | new.keys()):
            # options of schema 1 are as given, not as resolved
            comparable = schema > 1 or (name.endswith("_sha256") and name in old)
            if comparable and old.get(name) != new.get(name):
                label = Label.of(here.decoder).shown
                yield _line(f"{label}.{name}", old.get(name), new.get(name))


def _package_differences(header: dict[str, Any]) -> Iterable[str]:
    """Yield the libraries of another version, torch among them, and Python."""
    current = provenance()
    packages = header.get("packages")
    there = dict(packages) if isinstance(packages, dict) else {}
    for name in sorted(there.keys() | current["packages"].keys()):
        old, new = there.get(name), current["packages"].get(name)
        if there and old != new and name != "torch":  # torch is a field of keys
            yield _line(name, old, new)
    if there and header["schema"] == 1 and there.get("torch") != current["packages"].get("torch"):
        yield _line("torch", there.get("torch"), current["packages"].get("torch"))
    if header.get("python") not in (None, current["python"]):
        yield _line("python", header["python"], current["python"])


def _missing(reference: Reference) -> list[str]:
    """Return the fields of keys that an older version did not record."""
    keys = reference.records.keys.values()
    missing = [name for name in SINCE_SCHEMA_2 if not any(getattr(key, name) for key in keys)]
    if all(key.target_identity.startswith("tiny") for key in keys):
        missing = [name for name in missing if name != "target_sha256"]  # it has no files
    return missing + (["options as resolved"] if reference.schema == 1 else [])


def _line(name: str, old: Any, new: Any) -> str:
    return f"{name}: {_shown(old)} in the record, {_shown(new)} here"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    text = str(value)
    return text[:SHOWN] if len(text) == FILE_HASH and text.isalnum() else text or "''"


def _by_subject(keys: Iterable[Key]) -> dict[Subject, Key]:
    return {_subject(key): key for key in keys}


def _subject(key: Key) -> Subject:
    return (key.decoder, key.task, key.temperature)


def _name(subject: Subject) -> str:
    decoder, task, temperature = subject
    return f"{Label.of(decoder).shown} on {task}, T={temperature:g}"


# both runs side by side


def side_by_side(reference: Reference, records: Records, *, is_markdown: bool) -> str:
    """Return a table of the rows that both runs have: the record's figures, and those of here.

    Figures are those of the prompts that both runs answered, in either run.
    """
    there = reference.records
    prompts = _shared_prompts(there, records)
    theirs = _rows(there, prompts)
    body = []
    for subject, row in _rows(records, prompts).items():
        counts = equal_tokens(there, records, subject)
        body.append([*_cells(subject, theirs[subject], row), str(counts)])
    sides = ["left", "left", "right", "left", "left", *["right"] * 4, "left"]
    return grid(body, [*HEADER, "equal tokens"], is_markdown=is_markdown, sides=sides)


def equal_tokens(there: Records, here: Records, subject: Subject) -> Counts:
    """Return how many outputs of a row have the tokens that they have in another record."""
    mine = _outputs(here, subject)
    theirs = _outputs(there, subject)
    shared = mine.keys() & theirs.keys()
    return Counts(len(shared), sum(mine[place] == theirs[place] for place in shared))


def _shared_prompts(there: Records, here: Records) -> dict[Subject, set[Asked]]:
    """Return the prompts that both records have answers to, of each row that both have."""
    subjects = _by_subject(there.keys.values()).keys() & _by_subject(here.keys.values()).keys()
    return {
        subject: _outputs(there, subject).keys() & _outputs(here, subject).keys()
        for subject in subjects
    }


def _rows(records: Records, prompts: dict[Subject, set[Asked]]) -> dict[Subject, Row]:
    """Return the rows that stand on these prompts alone; a row without any is left out."""
    kept = {name: prompts.get(_subject(key), set()) for name, key in records.keys.items()}
    samples = [sample for sample in records.samples if _asked(sample) in kept[sample.key]]
    table = rows(replace(records, samples=samples))
    return {_row_subject(row): row for row in table if row["samples"]}


def _outputs(records: Records, subject: Subject) -> dict[Asked, list[int]]:
    """Return the tokens of a row's outputs by question, turn, repeat and prompt."""
    names = [name for name, key in records.keys.items() if _subject(key) == subject]
    samples = latest(sample for sample in records.samples if sample.key in names[-1:])
    return {_asked(sample): sample.tokens for sample in samples if not sample.error}


def _asked(sample: Sample) -> Asked:
    return (sample.sample, sample.turn, sample.repeat, sample.prompt_sha256)


def _row_subject(row: Row) -> Subject:
    return (row["decoder"], row["task"], row["temperature"])


def _cells(subject: Subject, there: Row, here: Row) -> list[str]:
    decoder, task, temperature = subject
    return [
        Label.of(decoder).shown,
        task,
        f"{temperature:g}",
        shown_verdict(there),
        shown_verdict(here),
        _number(there, "tokens_per_step"),
        _number(here, "tokens_per_step"),
        _mark(there) + _number(there, "speedup"),
        _mark(here) + _number(here, "speedup"),
    ]


def _mark(row: Row) -> str:
    return "~" if row["noisy"] and row["speedup"] is not None else ""


def _number(row: Row, name: str) -> str:
    return "-" if row[name] is None else f"{row[name]:.2f}"
