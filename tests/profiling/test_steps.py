"""The parts of a step add up, and the figures derived from them are right."""

from dataclasses import replace

import pytest
from clock import stopped

from fspad_bench.cli.main import main
from fspad_bench.core import loop
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.sizing import timing as sizing
from fspad_bench.engine import device_loop
from fspad_bench.engine.session import Session
from fspad_bench.engine.target import LARGEST_TREE
from fspad_bench.models.load import load_target
from fspad_bench.profiling import forward, steps, timing
from fspad_bench.profiling.forward import LENGTHS, ForwardCosts, forward_costs
from fspad_bench.profiling.steps import PARTS, Clock, Profile, profile, render

PROMPTS = [list(range(30, 52)), [40, 41, 42] * 8]
PROFILE = Profile(
    label="x",
    steps=10,
    tokens=20,
    decode=4.0,
    vanilla_per_token=0.3,
    parts=dict(zip(PARTS, [1.0, 2.0, 0.5, 0.25, 0.05], strict=True)),
    forward=ForwardCosts(
        {1: 0.2},
        {100: 0.2, 1100: 0.33},
        weight_bytes=10**9,
        entry_bytes=10**6,
        copy_bandwidth=1e10,
    ),
)


def drafting(drafter):
    return Decoder("x", None, drafter=drafter)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(forward, "NODES", (1, 2))
    monkeypatch.setattr(forward, "LENGTHS", (16, 32, 10**9))
    monkeypatch.setattr(timing, "CPU_COPY", 1 << 20)


@pytest.fixture
def clock(monkeypatch):
    return stopped(monkeypatch, steps, loop, device_loop, sizing)


def test_a_window_bounds_what_a_longer_prefix_is_expected_to_cost():
    of_all = PROFILE.forward
    assert of_all.expected(1100) == pytest.approx(0.2 + 1000 * 1e6 / 1e10)
    half = replace(of_all, windows=(None, 300))
    assert half.expected(1100) == pytest.approx(0.2 + (1000 + 200) / 2 * 1e6 / 1e10)
    assert replace(of_all, windows=(50, 50)).expected(1100) == 0.2


def test_parts_add_up_to_the_step(tiny):
    result = profile(tiny, drafting(PromptLookup(tiny)), PROMPTS, Sampler(), 16)
    assert result.tokens == 2 * 15  # the first token of each is the prefill's
    assert 1 <= result.steps <= result.tokens
    assert min(result.parts.values()) > 0
    assert 0 <= result.host < result.decode
    assert sum(result.parts.values()) + result.host == pytest.approx(result.decode)


def test_slow_drafting_is_seen_as_drafting(tiny, clock):
    class Slow(PromptLookup):
        """Drafts nothing, slowly."""

        def propose(self, context, budget):
            clock.sleep(0.02)
            return Tree.root(context.tokens[-1])

    result = profile(tiny, drafting(Slow(tiny)), PROMPTS, Sampler(1.0), 8)
    assert result.parts["draft"] / result.steps == pytest.approx(0.02, rel=1e-3)
    assert result.parts["draft"] == pytest.approx(result.decode, rel=1e-2)
    assert result.measured < 0.01


def test_vanilla_against_itself(tiny, clock, monkeypatch):
    """Each of its steps is as dear as the other's, up to the readings of the parts' clock."""
    score = Session.score

    def slow(session, tree):
        clock.sleep(0.01)
        return score(session, tree)

    monkeypatch.setattr(Session, "score", slow)
    result = profile(tiny, drafting(Vanilla(tiny)), PROMPTS, Sampler(), 24)
    assert result.tokens_per_step == 1
    assert result.measured == pytest.approx(1, rel=1e-2)


def test_a_step_on_a_device_is_timed_as_it_runs(monkeypatch, clock):
    """It is replayed whole, and its drafting alone; the host's loop does not run."""
    monkeypatch.setenv("FSPAD_KERNELS", "reference")
    monkeypatch.setattr(steps, "generate", lambda *_: pytest.fail("the host's loop ran"))
    target = load_target("tiny")
    decoder = build_decoder("fspad", target)

    def slowed(run, seconds):
        def slow(*arguments):
            clock.sleep(seconds)
            return run(*arguments)

        return slow

    builder = decoder.loop.drafter
    monkeypatch.setattr(builder, "draft", slowed(builder.draft, 0.06))
    monkeypatch.setattr(target, "logits", slowed(target.logits, 0.02))
    result = profile(target, decoder, PROMPTS, Sampler(1.0), 16)
    assert set(result.parts) == {"draft", "forward"}
    assert result.parts["draft"] / result.steps == pytest.approx(0.06, rel=1e-3)
    assert result.parts["forward"] / result.steps == pytest.approx(0.02, rel=1e-3)
    assert result.decode / result.steps == pytest.approx(0.08, rel=1e-3)
    assert result.tokens == 2 * 15
    assert "of a step outside the two networks" in render(result)


def test_a_longer_prompt_brings_no_new_cache_onto_the_clock(monkeypatch):
    """On a GPU a larger cache means that graphs are captured again."""
    target = load_target("tiny")
    made = []
    monkeypatch.setattr(target, "new_cache", lambda slots: made.append(slots) or new(slots))
    new = type(target).new_cache.__get__(target)
    monkeypatch.setattr(steps, "forward_costs", lambda _: PROFILE.forward)
    prompts = [[5, 6], [5] * 60, [5, 6, 7] * 70]
    profile(target, drafting(Vanilla(target)), prompts, Sampler(), 8)
    assert made == [210 + 8 + LARGEST_TREE]


def test_speedups_are_ratios_of_what_was_measured():
    assert PROFILE.host == pytest.approx(0.2)
    assert PROFILE.measured == pytest.approx(0.3 / 0.2)
    assert PROFILE.modelled == pytest.approx(2 * 0.2 * 10 / 3)
    text = render(PROFILE)
    summary = "2.00 tokens/step; speedup 1.50 measured, 1.33 modelled; 25.0% of a step outside"
    assert summary in text
    assert "50%" in text  # 0.1 s of copying in 0.2
    assert PROFILE.forward.expected(1100) == pytest.approx(0.3)
    assert "330.00 ms         300.00 ms             1.10" in text


def test_a_longer_prefix_is_measured_where_it_fits(tiny):
    costs = forward_costs(tiny)
    assert list(costs.lengths) == [16, 32]
    assert costs.entry_bytes == 2 * 2 * tiny.config.num_key_value_heads * tiny.config.head_dim * 8


def test_a_context_without_room_for_the_forwards_is_one_clear_error(
    tiny, capsys, monkeypatch, quick_runs
):
    monkeypatch.setattr(forward, "LENGTHS", LENGTHS)
    monkeypatch.setattr(type(tiny), "max_length", 383)
    assert main("profile --target tiny --limit 1 --max-new-tokens 4".split()) == 2
    error, hint = capsys.readouterr().err.splitlines()  # nothing was decoded before
    assert error == "error: tiny has a context of 383 tokens: timing its forwards takes 384"
    assert hint == "hint:  name another --target"
    monkeypatch.setattr(type(tiny), "max_length", 384)
    assert list(forward_costs(tiny).lengths) == [256]


def test_answers_of_one_token_have_no_steps(tiny, capsys):
    result = profile(tiny, drafting(PromptLookup(tiny)), PROMPTS, Sampler(), 1)
    assert (result.steps, result.tokens) == (0, 0)
    assert [result.tokens_per_step, result.measured, result.modelled] == [None] * 3
    assert "- tokens/step; speedup - measured, - modelled; - of a step outside" in render(result)
    assert main("profile --target tiny --limit 1 --max-new-tokens 1".split()) == 0
    assert "c(n) / c(1)" in capsys.readouterr().out


def test_a_step_that_raises_is_still_timed():
    clock = Clock()
    with pytest.raises(ZeroDivisionError):
        clock.timed("draft", lambda: 1 / 0)()
    assert clock.seconds["draft"] > 0


def test_the_verb_prints_and_draws(tmp_path, capsys):
    words = [
        "profile",
        "--target",
        "tiny",
        "--decoder",
        "prompt_lookup",
        "--limit",
        "2",
        "--max-new-tokens",
        "8",
    ]
    assert main([*words, "--picture", str(tmp_path / "step.png")]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in (*PARTS, "host", "c(n) / c(1)", "modelled"))
    assert (tmp_path / "step.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decoder", "fspda"], "unknown decoder 'fspda'"),
        (["--task", "gsmk8"], "unknown task 'gsmk8'"),
        (
            ["--decoder", "fspad_bench.integrations.transformers_generate:StockGenerate"],
            "is an engine of its own",
        ),
        (["--temperature", "-1"], "temperature -1.0 is out of range"),
        (["--picture", "step.xyz"], "'step.xyz' is no picture"),
        (["--picture", "gone/step.png"], "no folder gone"),
    ],
)
def test_bad_input_is_one_clear_error(words, message, capsys):
    assert main(["profile", "--target", "tiny", *words]) == 2
    assert message in capsys.readouterr().err


class Stumbles(Vanilla):
    """Raises in its third step, or in its settings."""

    def __init__(self, target, *, where: str = "propose"):
        self.where = where
        self.steps = 0

    def settings(self):
        if self.where == "settings":
            raise KeyError("depth")
        return {}

    def propose(self, context, budget):
        self.steps += 1
        if self.steps == 3 and self.where == "propose":
            raise RuntimeError("no draft")
        return super().propose(context, budget)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("propose", "a generation raised RuntimeError: no draft"),
        ("settings", "settings() raised KeyError: 'depth'"),
    ],
)
def test_a_decoder_that_raises_is_one_clear_error(capsys, where, message):
    label = f"{__name__}:Stumbles"
    words = ["--target", "tiny", "--decoder", label, "-D", f"{label}.where={where}"]
    assert main(["profile", *words, "--limit", "1", "--max-new-tokens", "8"]) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith(f"error: {label}: {message} (")
    assert error.endswith(")")
    assert "correct the decoder" in hint
