"""External engines: timed from outside, and judged by their tokens."""

import pytest
import torch
from runs import LENGTH, ME, Beyond, Foreign, foreign, plan_of, row_of, run

from fspad_bench.benchmark import runner
from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.rows import failed, rows
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Decoder
from fspad_bench.decoders.foreign import confirmed
from fspad_bench.util.errors import BenchError

pytestmark = pytest.mark.usefixtures("one_target")


@pytest.mark.parametrize("edit", ["none", "long"])
def test_a_foreign_engine_is_timed_from_outside_and_cut_at_the_limit(data, tmp_path, edit):
    records, row = foreign(data, tmp_path / "out", edit, temperatures=[1.0])
    assert (row["verdict"], row["tokens"], row["errors"]) == (
        "exact",
        row_of(records, "vanilla")["tokens"],
        0,
    )
    assert row["speedup_end_to_end"] > 0
    unknown = "speedup tokens_per_step time_to_first_token draft_share score_share".split()
    assert [row[name] for name in unknown] == [None] * 5
    samples = [s for s in records.samples if records.keys[s.key].decoder != "vanilla"]
    assert all(s.prefill_seconds > 0 == s.decode_seconds for s in samples)


@pytest.mark.parametrize("edit", ["short", "empty"])
def test_a_foreign_engine_that_stops_early_has_failed(data, tmp_path, edit):
    """All its tokens are vanilla's: without this rule the row would read `tie`."""
    _, row = foreign(data, tmp_path / "out", edit)
    assert (row["errors"], row["verdict"]) == (5, "unverified")


def test_a_foreign_engine_with_other_tokens_is_lossy(data, tmp_path):
    records, row = foreign(data, tmp_path / "out", "other")
    assert (row["verdict"], row["divergences"], row["same_tokens"]) == ("lossy", 5, 0.0)
    assert len(records.audits) == 5
    assert row_of(records, "vanilla")["verdict"] == "exact"
    assert failed(rows(records))


def test_processes_that_it_names_work_for_it_in_its_own_turns(data, tmp_path, monkeypatch):
    helpers = []

    class Load:
        def __init__(self, given):
            helpers.append(list(given))

        def others(self):
            return 0.0

    monkeypatch.setattr(Foreign, "processes", lambda self: [7], raising=False)
    monkeypatch.setattr(runner.machine, "Load", Load)
    foreign(data, tmp_path / "out", "none")
    assert sorted(helpers) == [[]] * 5 + [[7]] * 5


def test_processes_that_are_no_numbers_are_refused_before_anything_is_measured(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(Foreign, "processes", lambda self: ["init"], raising=False)
    with pytest.raises(BenchError, match=r"Foreign: processes\(\) raised .*processes holds 'init'"):
        foreign(data, tmp_path / "out", "none")
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_foreign_engine_ends_where_the_stop_is(tiny):
    method = Decoder("foreign", tiny, engine=Foreign(tiny))
    prompt = [40, 41, 42]
    sampler = Sampler()
    whole = method.generate(tiny, sampler, prompt, Limit(12)).tokens
    stop = whole[5]
    cut = method.generate(tiny, sampler, prompt, Limit(12, frozenset([stop]))).tokens
    assert cut == whole[: whole.index(stop) + 1]


@pytest.mark.parametrize("returned", ["all", "cut", "made up"])
def test_an_engine_beyond_the_limit_makes_what_it_makes(data, tmp_path, returned):
    """Its steps, forwards and seconds are of 8 tokens after the prefill's, of which 5 are kept."""
    label = f"{ME}:Beyond"
    plan = plan_of(data, label, options={label: {"returned": returned}})
    _, records = run(plan, tmp_path / "out")
    row = row_of(records, label)
    assert (row["verdict"], row["tokens"]) == ("exact", 5 * LENGTH)
    assert row["claimed_tokens_per_step"] == Beyond.STEP
    confirmed = {"all": 9 - LENGTH, "cut": 0, "made up": 0}[returned]
    samples = [s for s in records.samples if records.keys[s.key].decoder == label]
    assert [s.overshoot or 0 for s in samples] == [confirmed] * 5
    assert row["draft_share"] is row["score_share"] is None


def test_tokens_beyond_the_limit_are_confirmed_up_to_a_stop(tiny):
    prompt = [40, 41, 42]
    sampler = Sampler(1.0)
    whole = Decoder("foreign", tiny, engine=Foreign(tiny)).generate(
        tiny, sampler, prompt, Limit(12)
    )
    before = Context([*prompt, *whole.tokens[:4]], len(prompt))
    beyond = whole.tokens[4:]
    end = Limit(4)
    forwards = tiny.forwards
    assert confirmed(tiny, sampler, before, beyond, end) == 8
    assert tiny.forwards == forwards  # the benchmark's own
    wrong = [*beyond[:3], (beyond[3] + 1) % 97, *beyond[4:]]
    assert confirmed(tiny, sampler, before, wrong, end) == 3
    stop = Limit(4, frozenset([beyond[2]]))
    assert confirmed(tiny, sampler, before, beyond, stop) == beyond.index(beyond[2]) + 1
    text = Limit(4, stop=lambda new: list(new) == whole.tokens[:6])
    assert confirmed(tiny, sampler, before, beyond, text) == 2
    for outside in ([], [-1], [97]):
        assert confirmed(tiny, sampler, before, outside, end) == 0
    assert confirmed(tiny, sampler, before, [beyond[0], 97, 98], end) == 1
    unknown = Context([*before.tokens, 97], len(prompt))
    assert confirmed(tiny, sampler, unknown, beyond, end) == 0
    full = Context([1] * tiny.max_length, len(prompt))
    assert confirmed(tiny, sampler, full, beyond, end) == 0


@pytest.mark.parametrize(
    ("stop", "kept", "steps"),
    [(3, 4, [3]), (4, 5, [4]), (5, 6, [4, 1]), (0, 1, [])],
)
def test_steps_end_at_a_stop(tiny, stop, kept, steps):
    """What an engine drafts behind a stop is no output, whoever counts it as accepted."""
    engine = Beyond(tiny)
    prompt = [40, 41, 42]
    tokens = engine.generate(prompt, Sampler(1.0), Limit(8)).tokens
    assert len(set(tokens)) == 9  # a stop is no earlier token
    limit = Limit(8, frozenset([tokens[stop]]))
    generation = Decoder("beyond", tiny, engine=engine).generate(tiny, Sampler(1.0), prompt, limit)
    assert (len(generation.tokens), generation.claims.get("committed", [])) == (kept, steps)
    assert generation.overshoot == 0


def test_partial_forwards_reach_the_row(data, tmp_path):
    label = f"{ME}:Skipping"
    _, records = run(plan_of(data, label), tmp_path / "out")
    assert (
        row_of(records, label)["partial_forwards"] == 2 * 4 * 5
    )  # of 5 steps the last drafts none
    assert row_of(records, "vanilla")["partial_forwards"] == 0


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, RuntimeError, MemoryError]
)  # a CPU raises the last two
def test_an_output_that_cannot_be_audited_is_unverified(data, tmp_path, monkeypatch, capsys, error):
    def fail(*_):
        raise error("no room for a copy")

    monkeypatch.setattr(Auditor, "audit", fail)
    records, row = foreign(data, tmp_path / "out", "other", limit=1)
    assert (row["verdict"], row["divergences"], row["max_regret"]) == ("unverified", 1, None)
    assert not records.audits
    reason = f"{error.__name__}: no room for a copy"
    if error is not RuntimeError:
        reason = f"out of memory: {reason}"
    text = f"this difference could not be audited: {reason}"
    assert row["findings"] == [{"guard": "audit", "text": text}]
    assert f"q0: {text}" in capsys.readouterr().err
