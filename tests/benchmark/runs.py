"""Shared by the tests of a run: faulty decoders, small plans, and readers of records."""

import json

import pytest

from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.record_lines import lines
from fspad_bench.benchmark.rows import rows
from fspad_bench.benchmark.runner import Runner
from fspad_bench.core.loop import Generation, Limit, generate
from fspad_bench.core.protocols import LayerPlan
from fspad_bench.core.verification import Accepted
from fspad_bench.decoders.vanilla import Vanilla

ME = "runs"
LOOKUP = "prompt_lookup"
LENGTH = 6
QUESTIONS = [f"What is {i} and {i}, and what is it not?" for i in (1, 2, 3, 9, 5)]


class Raises(Vanilla):
    """A decoder that fails on prompts with the character '9' (token 25), or on all if `always`."""

    def __init__(self, target, *, always: bool = False):
        self.always = always

    def begin(self, context, scores):
        if self.always or 25 in context.tokens[: context.prompt_length]:
            raise ZeroDivisionError("nine")


class Own(Vanilla):
    """A decoder whose own rule ignores the noise and takes the least likely token."""

    def rule(tree, logits, sampler, position):
        return Accepted([0], int(logits[0].argmin()))


class Headed(Vanilla):
    """A decoder that names a file whose content belongs to its key."""

    digest = "first"

    def __init__(self, target, *, head: str = "", depth: int = 2):
        self.head = head
        self.depth = depth

    def settings(self):
        return {"head": self.head, "depth": self.depth, "head_sha256": self.digest}


class Costly(Vanilla):
    """A decoder that measures, and takes no other measurements."""

    def prepare(self, target, known=None):
        return {"greedy": {"first": 1.0}}


class Foreign:
    """An external engine that reports no time; `edit` says how it changes vanilla's tokens."""

    def __init__(self, target, *, edit: str = "none"):
        self.target = target
        self.edit = edit

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


class Beyond(Foreign):
    """An engine of steps of four tokens, which looks at the limit after each; `returned` says what
    it returns beyond the limit: its tokens, nothing, or made-up ones.
    """

    STEP = 4

    def __init__(self, target, *, returned: str = "all"):
        super().__init__(target)
        self.returned = returned

    def generate(self, prompt, sampler, limit):
        steps = -(-limit.max_new_tokens // self.STEP)  # its first step follows the prefill's token
        whole = Limit(1 + steps * self.STEP)
        tokens = generate(self.target, Vanilla(self.target), sampler, prompt, whole).tokens
        kept = tokens[: limit.max_new_tokens]
        returned = {"all": tokens, "cut": kept, "made up": [*kept, *[7] * 1000]}[self.returned]
        return Generation(
            returned, 0.0, 1e-3, forwards=steps, committed=[self.STEP] * steps, score_seconds=1e-4
        )


class Learner(Vanilla):
    """A decoder that learns across prompts."""

    scope = "run"


class Skipping(Vanilla):
    """A decoder that scores two tokens a step with some of the layers."""

    def __init__(self, target):
        self.target = target

    def propose(self, context, budget):
        layers = LayerPlan(skip_mlp=frozenset([0]))
        share = self.target.last_session
        with self.target.session(0, layers=layers, share=share) as session:
            for _ in range(2 if budget else 0):
                session.extend([1], [-1])
        return super().propose(context, budget)


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
    settings = {
        "decoders": ["vanilla", *decoders],
        "tasks": ["gsm8k"],
        "target": "tiny",
        "data": str(source),
        "max_new_tokens": LENGTH,
        "aa": False,
    }
    return Plan(**settings | changes)


def run(plan, output):
    path = Runner(plan, output).run()
    return path, Records.read(path)


def header_of(path):
    return next(lines(path))


def row_of(records, decoder):
    (row,) = [row for row in rows(records) if row["decoder"] == decoder]
    return row


def tokens_of(records):
    """Return (decoder, temperature, sample, turn) -> tokens, of the last generation of each."""
    key = records.keys
    return {
        (key[s.key].decoder, key[s.key].temperature, s.sample, s.turn): s.tokens
        for s in records.samples
    }


def foreign(data, output, edit, **changes):
    """Run `Foreign` with an edit. Returns the records and its row."""
    label = f"{ME}:Foreign"
    _, records = run(plan_of(data, label, options={label: {"edit": edit}}, **changes), output)
    return records, row_of(records, label)


def unfinished(plan, output, monkeypatch):
    """Run a plan that measures everything and is interrupted before its scores."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Runner, "_score", interrupt)
        run(plan, output)


def interrupt(*_, **__):
    raise KeyboardInterrupt
