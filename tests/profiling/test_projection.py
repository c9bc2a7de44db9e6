"""Projections: recorded steps at other costs, against sums made by hand."""

import json
import math
from dataclasses import replace

import pytest
from by_hand import FAST, KEY, VANILLA, records, sample
from doubles import LinearForwards

from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.record_file import RecordFile
from fspad_bench.cli.main import main
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.drafts.sizing import costs
from fspad_bench.drafts.sizing.costs import SIZES, Costs
from fspad_bench.models.random_weights import shape
from fspad_bench.profiling.cost_models import MeasuredForwards, Overhead, Roofline
from fspad_bench.profiling.probe import probe
from fspad_bench.profiling.projection import (
    Overheads,
    Place,
    at_roofline,
    cases,
    measured_speedups,
    project,
    recorded_draft_cost,
    recorded_options,
)
from fspad_bench.profiling.projection_table import projection_table
from fspad_bench.util.errors import BenchError

STEPS = [
    # 9 steps of 1 token: 0.9 s of forwards, 0.09 s beside them
    sample(VANILLA, "a", 10, 0.99, committed=[1] * 9, drafted=[0] * 9, forwards=9),
    # 3 steps of 3 tokens, 4 drafted
    sample(FAST, "a", 10, 0.6, committed=[3] * 3, drafted=[4] * 3, forwards=3),
]


def timed(sample, draft, score):
    return replace(sample, prompt_tokens=100, draft_seconds=draft, score_seconds=score)


@pytest.fixture
def case():
    vanilla, fast = STEPS
    (only,) = cases(records(timed(vanilla, 0.0, 0.9), timed(fast, 0.15, 0.36)))
    return only


def test_each_step_is_charged_for_its_nodes_and_its_prefix(case):
    (result,) = project(
        [case],
        LinearForwards(),
        [Overheads(Overhead(0.5, 0.25), Overhead(0.0, 0.125))],
        [1.25],
    )
    vanilla = sum(1 + (100 + i) / 1000 + 0.125 for i in range(9)) / 9
    decoder = sum(5 + (100 + 3 * i) / 1000 + 0.75 for i in range(3)) / 9
    assert result.projected == pytest.approx(vanilla / decoder, rel=1e-12)
    assert result.tokens_per_step == 3
    assert result.recorded == pytest.approx(0.99 / 0.6)
    assert result.error == pytest.approx(vanilla / decoder / 1.25 - 1)


def test_at_its_own_costs_a_record_gives_its_own_speedup(case):
    """Forwards of 1 and 5 nodes took 0.1 and 0.12 s: the mean parts make the whole again."""
    forward = [0.1 if nodes < 4 else 0.12 for nodes in SIZES]
    (result,) = project(
        [case],
        MeasuredForwards(Costs(tuple(forward), 0.0, 0.0)),
        [Overheads(Overhead.of(case.samples), Overhead.of(case.vanilla))],
        [None],
    )
    own = Overhead.of(case.samples)
    assert (own.draft, own.rest) == pytest.approx((0.05, 0.03))
    assert result.projected == pytest.approx(result.recorded, rel=1e-12)
    assert result.error is None


def test_a_roofline_is_bound_by_bytes_or_by_operations():
    config = shape("llama3-8b")
    slow = Roofline.of(config, bandwidth=1e12, rate=1e18)
    weights = 8.03e9 - 128256 * 4096  # all but the embedding
    assert slow.weight_bytes == pytest.approx(2 * weights, rel=0.001)
    assert slow.seconds(1, 0) == slow.seconds(64, 0) == slow.weight_bytes / 1e12
    entries = 2 * 2 * 32 * 8 * 128  # bytes of a token's keys and values
    assert slow.seconds(1, 1000) - slow.seconds(1, 0) == pytest.approx(1000 * entries / 1e12)
    busy = Roofline.of(config, bandwidth=1e18, rate=1e12)
    assert busy.seconds(6, 0) == pytest.approx(6 * 2 * weights / 1e12, rel=0.001)
    together = replace(busy, batch=8)
    assert together.seconds(6, 100) == pytest.approx(8 * busy.seconds(6, 100))


def test_what_speculation_gains_shrinks_with_the_batch(case):
    gains = []
    for batch in (64, 256, 1024):
        forwards = Roofline.of(shape("llama3-8b"), 3e12, 1e15, batch)
        (result,) = at_roofline([case], forwards, 0.05, [None])
        gains.append(result.projected)
    assert gains[0] > gains[1] > gains[2]
    assert gains[2] < 1 < gains[0]


def test_drafting_costs_its_recorded_share_unless_another_is_given(case):
    assert recorded_draft_cost(case) == pytest.approx(0.05 / 0.1)
    forwards = Roofline.of(shape("llama3-8b"), 3e12, 1e15)
    recorded = at_roofline([case], forwards, None, [None])
    given = at_roofline([case], forwards, 0.5, [None])
    assert recorded == given
    assert at_roofline([case], forwards, 0.1, [None])[0].projected > given[0].projected


def test_a_draft_cost_that_was_not_timed_must_be_given(case):
    """A device's whole steps have no parts: drafting is not free for that."""
    untimed = [replace(s, draft_seconds=None, score_seconds=None) for s in case.samples]
    device = replace(case, samples=untimed)
    forwards = Roofline.of(shape("llama3-8b"), 3e12, 1e15)
    with pytest.raises(BenchError, match="does not say what its drafting costs"):
        at_roofline([device], forwards, None, [None])
    assert at_roofline([device], forwards, 0.5, [None])[0].projected > 0


def of_machine(name, seconds, **more):
    """The case of a record of another machine, whose steps took so long in all."""
    vanilla = replace(VANILLA, machine=name, **more)
    fast = replace(FAST, machine=name, **more)
    own = (timed(STEPS[0], 0.0, 0.9), timed(replace(STEPS[1], decode_seconds=seconds), 0.15, 0.36))
    samples = [replace(s, key=key.hash) for s, key in zip(own, (vanilla, fast), strict=True)]
    (only,) = cases(records(*samples, keys=(vanilla, fast)))
    return only


def test_rows_of_one_decoder_and_task_are_charged_each_with_its_own_costs():
    every = [of_machine("quick", 0.6), of_machine("slow", 6.0), of_machine("quick", 0.9, top_p=0.9)]
    forwards = Roofline.of(shape("llama3-8b"), 3e12, 1e15)
    together = at_roofline(every, forwards, None, [None] * 3)
    alone = [at_roofline([case], forwards, None, [None])[0] for case in every]
    assert [p.projected for p in together] == [p.projected for p in alone]
    assert len({p.projected for p in together}) == 3
    assert [p.shown for p in together] == [
        "fast (machine=quick, top_p=1.0)",
        "fast (machine=slow, top_p=1.0)",
        "fast (machine=quick, top_p=0.9)",
    ]
    assert [p.shown for p in alone] == ["fast"] * 3
    facts = json.loads(projection_table(together, "json"))["projections"]
    assert facts[1]["apart"] == {"machine": "slow", "top_p": 1.0}


@pytest.mark.parametrize("untimed", ["samples", "vanilla"])
def test_the_rest_of_a_step_is_charged_to_both_sides_or_to_neither(case, untimed):
    """A loop on a device times no parts: its steps are not free of the rest for that."""

    def without_parts(*sides):
        parts = {"draft_seconds": None, "score_seconds": None}
        own = {side: [replace(s, **parts) for s in getattr(case, side)] for side in sides}
        return at_roofline([replace(case, **own)], LinearForwards(), 0.5, [None])[0].projected

    assert without_parts(untimed) == without_parts("samples", "vanilla")
    assert without_parts(untimed) != without_parts()


def test_vanilla_counts_on_the_prompts_of_the_decoder(case):
    """A prompt on which the decoder failed has no place on either side."""
    alone = sample(VANILLA, "b", 30, 1.0, committed=[1] * 29, drafted=[0] * 29, forwards=29)
    failed = replace(sample(FAST, "b", [], 0.0), error="out of order")
    timings = ((0.0, 0.9), (0.15, 0.36))
    own = [timed(s, *parts) for s, parts in zip(STEPS, timings, strict=True)]
    (both,) = cases(records(*own, alone, failed))
    assert both == case


def test_a_speedup_to_compare_with_is_of_the_same_target_and_sampling(case):
    here = replace(case, key=replace(case.key, machine="here"))
    assert measured_speedups([case], [here]) == [here.recorded]
    assert measured_speedups([case], []) == [None]
    other = replace(here, key=replace(here.key, task="nq"))
    assert measured_speedups([case], [other, here]) == [here.recorded]
    with pytest.raises(BenchError, match="T=0 has two rows to compare with, of other machine"):
        measured_speedups([case], [case, here])
    cut = replace(here, key=replace(here.key, top_p=0.9))
    with pytest.raises(BenchError, match=r"with top_p=0\.9, and is projected with top_p=1\.0"):
        measured_speedups([case], [cut])
    large = replace(here, key=replace(here.key, target="large"))
    with pytest.raises(BenchError, match="with target=large, and is projected with target=tiny"):
        measured_speedups([case], [large])
    assert measured_speedups([case], [large], "large") == [here.recorded]


def test_an_unknown_speedup_is_no_error_of_a_projection(case):
    unknown = replace(case, recorded=math.nan)
    assert measured_speedups([case], [unknown]) == [None]
    costs = [Overheads(Overhead(), Overhead())] * 2
    both = project([case, case], LinearForwards(), costs, [math.nan, 0.6])
    text = projection_table(both, "text")
    assert "largest error of 1 rows: " in text
    assert "nan" not in text
    assert "largest" not in projection_table(both[:1], "text")


def test_work_before_the_clock_leaves_no_recorded_speedup():
    vanilla, fast = STEPS
    vanilla = replace(vanilla, prefill_forwards=1)
    (plain,) = cases(records(vanilla, replace(fast, prefill_forwards=1)))
    (hidden,) = cases(records(vanilla, replace(fast, prefill_forwards=3)))
    assert plain.recorded == pytest.approx(0.99 / 0.6)
    assert math.isnan(hidden.recorded)


def test_rows_whose_steps_are_not_known_are_left_out():
    vanilla, fast = STEPS
    foreign = replace(FAST, verification="foreign")
    assert not cases(records(vanilla, replace(fast, key=foreign.hash), keys=(VANILLA, foreign)))
    assert not cases(records(vanilla, replace(fast, drafted=[])))
    assert not cases(records(fast))
    assert not cases(records(vanilla, replace(fast, error="out of order")))


def test_a_probe_times_the_rows_decoders_here(tiny):
    place = Place("prompt_lookup", "gsm8k", 0.0)
    measured = probe(tiny, [place], {})
    assert measured.overheads.keys() == {place, place._replace(decoder="vanilla")}
    assert measured.overheads[place].draft > 0
    assert measured.vanilla(place).rest > 0


def test_a_probe_asks_in_every_step(tiny, monkeypatch):
    """Whether asking pays here is not asked: what is charged is what asking takes."""

    def never(*_):
        raise AssertionError("left to what pays")

    monkeypatch.setattr(SizedDrafter, "is_asked", never)
    place = Place("prompt_lookup", "gsm8k", 0.0)
    assert probe(tiny, [place], {}).overheads[place].draft > 0


# golden acceptance lengths


# the verb


@pytest.fixture
def record(tmp_path):
    """A record of two decoders on disk."""
    path = tmp_path / "records" / "r.jsonl"
    path.parent.mkdir()
    options = {"prompt_lookup": {"ngram": "2"}}
    plan = {
        "decoders": ["vanilla", "prompt_lookup"],
        "tasks": ["gsm8k"],
        "target": "tiny",
        "options": options,
    }
    written = RecordFile(path, {"plan": plan})
    vanilla, fast = STEPS
    lookup = replace(FAST, decoder="prompt_lookup")
    for key, own in ((KEY, timed(vanilla, 0.0, 0.9)), (lookup, timed(fast, 0.15, 0.36))):
        written.key(key)
        written.add(replace(own, key=key.hash))
    written.end()
    written.release()
    return path


def test_the_verb_projects_to_a_device(record, capsys):
    device = ["--shape", "llama3-8b", "--bandwidth", "3000", "--tflops", "800"]
    assert main(["project", str(record), *device, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["projections"]
    assert (row["decoder"], row["task"]) == ("prompt_lookup", "gsm8k")
    (case,) = cases(Records.read(record))
    forwards = Roofline.of(shape("llama3-8b"), 3e12, 8e14)
    assert row["projected"] == at_roofline([case], forwards, None, [None])[0].projected


def test_made_up_costs_are_no_projection(record, capsys):
    assert main(["project", str(record)]) == 2
    assert "the costs of tiny are made up" in capsys.readouterr().err


def test_the_verb_measures_here_and_states_its_error(record, capsys, monkeypatch):
    monkeypatch.setattr(costs, "is_tiny", lambda target: False)
    assert recorded_options([record]) == {"prompt_lookup": {"ngram": "2"}}
    assert main(["project", str(record), "--against", str(record)]) == 0
    out = capsys.readouterr().out
    assert "prompt_lookup  gsm8k" in out
    assert "largest error of 1 rows: " in out


@pytest.mark.parametrize("shape", [True, False])
def test_a_record_to_compare_with_that_knows_no_speedup_is_refused(record, capsys, shape):
    hidden = record.with_name("hidden.jsonl")
    forwards = '"prefill_forwards": '
    hidden.write_text(record.read_text().replace(f"{forwards}0", f"{forwards}3"))
    device = ["--shape", "llama3-8b", "--bandwidth", "3000", "--tflops", "800"] * shape
    assert main(["project", str(record), *device, "--against", str(hidden)]) == 2
    assert "with a speedup that is known" in capsys.readouterr().err


def test_the_verb_replays_golden_lengths(tmp_path, capsys):
    path = tmp_path / "golden.yaml"
    path.write_text("m3: {thinking_on: {1: 1.79, 3: 2.78}}")
    device = ["--shape", "llama3-8b", "--bandwidth", "3000", "--tflops", "800"]
    draft = ["--draft-cost", "0.05"]
    assert main(["project", "--golden", str(path), *device, *draft, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["projections"]
    assert [row["drafts"] for row in rows] == [1, 3]
    assert rows[0]["projected"] == pytest.approx(1.79 / 1.05, rel=0.01)  # bound by bytes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name records, or a file with --golden"),
        (["RECORD", "--shape", "llama3-8b"], "a roofline is a shape on a device"),
        (["RECORD", "--batch", "8"], "--batch and --draft-cost are of a roofline"),
        (["--golden", "g.yaml"], "golden lengths say nothing about costs"),
        (["RECORD", "--golden", "g.yaml"], "name records, or a file with --golden"),
        (["--golden", "g.yaml", "--against", "RECORD"], "--against is of a record"),
        (
            ["RECORD", "--shape", "llama4", "--bandwidth", "1", "--tflops", "1"],
            "unknown shape 'llama4'",
        ),
        (["none.jsonl"], "no such record: none.jsonl"),
    ],
)
def test_arguments_that_cannot_work_are_refused(record, capsys, words, message):
    words = [str(record) if word == "RECORD" else word for word in words]
    assert main(["project", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_two_records_of_other_options_are_not_projected_as_one(record, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(record.read_text().replace('"ngram": "2"', '"ngram": "3"'))
    with pytest.raises(BenchError, match="its decoders have other options than those of"):
        recorded_options([record, other])


def test_an_empty_record_beside_another_has_no_options(record):
    """As of a process that was killed at its first line; other verbs read on too."""
    record.with_name("empty.jsonl").write_text("")
    record.with_name("torn.jsonl").write_text('{"kind": "run"')
    paths = sorted(record.parent.glob("*.jsonl"))
    assert len(paths) == 3
    assert recorded_options(paths) == {"prompt_lookup": {"ngram": "2"}}


def test_a_record_whose_plan_is_damaged_is_refused(record):
    record.write_text(record.read_text().replace('"tasks"', '"tusks"'))
    with pytest.raises(BenchError, match="a plan with 'tusks'"):
        recorded_options([record])


def test_the_table_names_the_largest_error(case):
    good = project([case], LinearForwards(), [Overheads(Overhead(), Overhead())], [0.6])
    text = projection_table(good, "text")
    error = good[0].projected / 0.6 - 1
    assert f"largest error of 1 rows: {error:+.1%} (fast on gsm8k, T=0)" in text
    assert "measured" not in projection_table([replace(good[0], measured=None)], "markdown")
