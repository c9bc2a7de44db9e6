"""Foreign engines, which are timed from outside and held to what they said."""

import pytest
import torch
from runs import Foreign, foreign, row_of

from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.rows import failed, rows
from fspad_bench.core.loop import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Method

pytestmark = pytest.mark.usefixtures("one_target")


@pytest.mark.parametrize("edit", ["none", "long"])
def test_a_foreign_engine_is_timed_from_outside_and_cut_at_the_limit(data, tmp_path, edit):
    found, row = foreign(data, tmp_path / "out", edit, temperatures=[1.0])
    assert (row["verdict"], row["tokens"], row["errors"]) == (
        "exact",
        row_of(found, "vanilla")["tokens"],
        0,
    )
    assert row["speedup_end_to_end"] > 0
    assert [row[name] for name in ("speedup", "tokens_per_step", "time_to_first_token")] == [
        None
    ] * 3
    made = [s for s in found.samples if found.keys[s.key].decoder != "vanilla"]
    assert all(s.prefill_seconds > 0 == s.decode_seconds for s in made)


@pytest.mark.parametrize("edit", ["short", "empty"])
def test_a_foreign_engine_that_stops_early_has_failed(data, tmp_path, edit):
    """Every token it did say is vanilla's: without this rule the row would read `tie`."""
    _, row = foreign(data, tmp_path / "out", edit)
    assert (row["errors"], row["verdict"]) == (5, "unverified")


def test_a_foreign_engine_that_says_something_else_is_lossy(data, tmp_path):
    found, row = foreign(data, tmp_path / "out", "other")
    assert (row["verdict"], row["divergences"], row["same_tokens"]) == ("lossy", 5, 0.0)
    assert len(found.audits) == 5
    assert row_of(found, "vanilla")["verdict"] == "exact"
    assert failed(rows(found))


def test_a_foreign_engine_ends_where_the_stop_is(tiny):
    method = Method("foreign", Foreign(tiny), {})
    prompt, sampler = [40, 41, 42], Sampler()
    whole = method.generate(tiny, sampler, prompt, Limit(12)).tokens
    stop = whole[5]
    cut = method.generate(tiny, sampler, prompt, Limit(12, frozenset([stop]))).tokens
    assert cut == whole[: whole.index(stop) + 1]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, RuntimeError, MemoryError]
)  # a CPU raises the last two
def test_what_no_audit_can_judge_is_unverified(data, tmp_path, monkeypatch, capsys, error):
    def fail(*_):
        raise error("no room for a copy")

    monkeypatch.setattr(Auditor, "audit", fail)
    found, row = foreign(data, tmp_path / "out", "other")
    assert (row["verdict"], row["divergences"], row["max_regret"]) == ("unverified", 5, None)
    assert "could not be audited: no room for a copy" in capsys.readouterr().err
    assert not found.audits
