"""What the tests of a run share: decoders that misbehave, small plans, and how to read the record."""

import json

import pytest

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.runner import Plan, Runner
from fspad_bench.core.loop import Generation, Limit, generate
from fspad_bench.core.verification import Accepted
from fspad_bench.decoders.vanilla import Vanilla

ME = "runs"
LOOKUP = "prompt_lookup"
LENGTH = 6


class Raises(Vanilla):
    """Fails on prompts that hold the character '9' (token 25), and on every prompt if `always`."""

    def __init__(self, target, *, always: bool = False):
        self.always = always

    def begin(self, context, scores):
        if self.always or 25 in context.tokens[: context.prompt_length]:
            raise ZeroDivisionError("nine")


class Own(Vanilla):
    """A rule of its own, which cares for no noise: the least likely token that is possible."""

    def verify(self, tree, logits, sampler, position):
        return Accepted([0], int(logits[0].argmin()))


class Headed(Vanilla):
    """Names a file whose content belongs to its run key."""

    digest = "first"

    def __init__(self, target, *, head: str = "", depth: int = 2):
        self.files = {"head": self.digest}


class Costly(Vanilla):
    """Says what its rounds cost, and cannot be told otherwise."""

    def __init__(self, target):
        super().__init__(target)
        self.costs = {"greedy": {"first": 1.0}}


class Foreign:
    """An engine of its own, whose tokens `edit` may spoil; it claims to take no time at all."""

    def __init__(self, target, *, edit: str = "none"):
        self.target, self.edit = target, edit

    def generate(self, prompt, sampler, limit):
        tokens = generate(
            self.target, Vanilla(self.target), sampler, prompt, Limit(limit.max_new_tokens)
        ).tokens
        edits = {
            "none": tokens,
            "long": [*tokens, 1, 2, 3],
            "short": tokens[:-2],
            "empty": [],
            "other": [(token + 1) % 90 for token in tokens],
        }
        return Generation(edits[self.edit], prefill_seconds=0.0, decode_seconds=0.0)


class Useless:
    def __init__(self, target):
        pass


def write(folder, questions, **more):
    path = folder / "questions.jsonl"
    rows = [
        {"id": f"q{i}", "question": q, "answer": f"#### {i}", **more}
        for i, q in enumerate(questions)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan_of(source, /, *decoders, **changes):
    plan = {
        "decoders": ["vanilla", *decoders],
        "tasks": ["gsm8k"],
        "target": "tiny",
        "options": {},
        "data": str(source),
        "limit": None,
        "temperatures": [0.0],
        "top_p": 1.0,
        "top_k": 0,
        "seed": 0,
        "max_new_tokens": LENGTH,
        "dtype": None,
        "device": "cpu",
        "threads": None,
        "log_samples": False,
    }
    return Plan(**plan | changes)


def run(plan, output):
    path = Runner(plan, output).run()
    return path, Records.read(path)


def row_of(found, decoder):
    (row,) = [row for row in rows(found) if row["decoder"] == decoder]
    return row


def tokens_of(found):
    """(decoder, temperature, sample, turn) -> tokens, of the last generation of each."""
    key = found.keys
    return {
        (key[s.key].decoder, key[s.key].temperature, s.sample, s.turn): s.tokens
        for s in found.samples
    }


def foreign(data, output, edit, **changes):
    label = f"{ME}:Foreign"
    _, found = run(plan_of(data, label, options={label: {"edit": edit}}, **changes), output)
    return found, row_of(found, label)


def unfinished(plan, output, monkeypatch):
    """A run that has measured everything, and was stopped before its scores."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Runner, "_score", interrupt)
        run(plan, output)


def interrupt(*_, **__):
    raise KeyboardInterrupt
