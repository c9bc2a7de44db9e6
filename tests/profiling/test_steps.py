"""Where a round's time goes adds up, and the figures derived from it are what they say."""

import time

import pytest

from fspad_bench.cli import main as cli
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.build import build
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.models.load import load_target
from fspad_bench.profiling import steps as profiling
from fspad_bench.profiling.steps import PARTS, Clock, Forward, Profile, profile, render

PROMPTS = [list(range(30, 52)), [40, 41, 42] * 8]
FOUND = Profile(
    label="x",
    rounds=10,
    tokens=20,
    decode=4.0,
    vanilla_a_token=0.3,
    parts=dict(zip(PARTS, [1.0, 2.0, 0.5, 0.25, 0.05], strict=True)),
    forward=Forward(
        {1: 0.2}, {100: 0.2, 1100: 0.33}, weight_bytes=10**9, row_bytes=10**6, copy_bandwidth=1e10
    ),
)


class Slow(PromptLookup):
    """Drafts nothing, slowly."""

    def propose(self, context, budget):
        time.sleep(0.02)
        return Tree.root(context.tokens[-1])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(profiling, "NODES", (1, 2))
    monkeypatch.setattr(profiling, "LENGTHS", (16, 32, 10**9))
    monkeypatch.setattr(profiling, "COPIED", 1 << 20)


def test_parts_add_up_to_the_round(tiny):
    found = profile(tiny, "lookup", PromptLookup(tiny), PROMPTS, Sampler(), 16)
    assert found.tokens == 2 * 15  # the first token of each is the prefill's
    assert 1 <= found.rounds <= found.tokens
    assert min(found.parts.values()) > 0
    assert 0 <= found.host < 0.5 * found.decode
    assert tiny.score.__func__ is type(tiny).score  # the target is as it was


def test_slow_drafting_is_seen_as_drafting(tiny):
    found = profile(tiny, "slow", Slow(tiny), PROMPTS, Sampler(1.0), 8)
    assert found.parts["draft"] / found.rounds == pytest.approx(0.02, rel=0.5)
    assert found.parts["draft"] > 0.5 * found.decode
    assert found.measured < 1


def test_vanilla_against_itself(tiny):
    found = profile(tiny, "vanilla", Vanilla(tiny), PROMPTS, Sampler(), 24)
    assert found.tokens_per_step == 1
    assert 0.3 < found.measured < 3


def test_a_round_on_a_device_is_timed_as_it_runs(monkeypatch):
    """Replayed whole, and its drafting alone; no part of the host's loop is on the clock."""
    monkeypatch.setenv("FSPAD_KERNELS", "reference")
    monkeypatch.setattr(profiling, "generate", lambda *_: pytest.fail("the host's loop"))
    target = load_target("tiny")
    drafter = build("fspad", target, {}).decoder
    real = drafter.grower.grow

    def slow(*arguments):
        time.sleep(0.06)
        real(*arguments)

    monkeypatch.setattr(drafter.grower, "grow", slow)
    found = profile(target, "fspad", drafter, PROMPTS, Sampler(1.0), 16)
    assert set(found.parts) == {"draft", "forward"}
    assert found.parts["draft"] / found.rounds == pytest.approx(0.06, rel=0.5)
    assert 0 < found.parts["forward"] / found.rounds < found.decode / found.rounds
    assert found.tokens == 2 * 15
    assert "of a round outside the two networks" in render(found)


def test_speedups_are_ratios_of_what_was_measured():
    assert FOUND.host == pytest.approx(0.2)
    assert FOUND.measured == pytest.approx(0.3 / 0.2)
    assert FOUND.modelled == pytest.approx(2 * 0.2 * 10 / 3)
    text = render(FOUND)
    assert (
        "2.00 tokens a step; speedup 1.50 measured, 1.33 modelled; 25.0% of a round outside" in text
    )
    assert "50%" in text  # 0.1 s of copying in 0.2
    assert FOUND.forward.expected(1100) == pytest.approx(0.3)
    assert "330.00 ms         300.00 ms             1.10" in text


def test_a_longer_prefix_is_measured_where_it_fits(tiny):
    found = profiling.forward_costs(tiny)
    assert list(found.lengths) == [16, 32]
    assert found.row_bytes == 2 * 2 * tiny.config.num_key_value_heads * tiny.config.head_dim * 8


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
    assert cli.main([*words, "--picture", str(tmp_path / "round.png")]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in (*PARTS, "host", "c(n) / c(1)", "modelled"))
    assert (tmp_path / "round.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--decoder", "fspda"], "unknown decoder 'fspda'"),
        (["--task", "gsmk8"], "unknown task 'gsmk8'"),
        (
            ["--decoder", "fspad_bench.integrations.transformers_generate:StockGenerate"],
            "is an engine of its own",
        ),
        (["--temperature", "-1"], "temperature -1.0 is out of range"),
    ],
)
def test_bad_input_is_one_clear_error(words, said, capsys):
    assert cli.main(["profile", "--target", "tiny", *words]) == 2
    assert said in capsys.readouterr().err
