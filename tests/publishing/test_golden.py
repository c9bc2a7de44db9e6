"""Golden acceptance lengths: written of chains, read back by `project`."""

from dataclasses import replace

import pytest

from fspad_bench.benchmark.record import Sample
from fspad_bench.cli.main import main
from fspad_bench.models.presets import PRESETS
from fspad_bench.profiling.golden import read_golden
from fspad_bench.publishing.golden import (
    WITHOUT_REASONING,
    acceptance_length,
    chain_length,
    golden_files,
)
from fspad_bench.util.errors import BenchError

LIMIT = 16


def chain(drafted, accepted):
    """A generation whose steps drafted chains and accepted so many of their tokens."""
    committed = [n + 1 for n in accepted]
    return Sample(
        key="",
        sample="a",
        turn=0,
        round="r",
        tokens=[0] * (1 + sum(committed)),
        committed=committed,
        drafted=drafted,
        depths=drafted,
        ranks=[[0] * n for n in accepted],
        refused=[int(n < d) for n, d in zip(accepted, drafted, strict=True)],
        decode_seconds=1.0,
    )


def test_a_chain_has_one_length_but_close_to_the_limit():
    # 1 token of the prefill, then 4 + 4 + 3: four are left, of which the last is no draft's
    assert chain_length([chain([4, 4, 4, 3], [3, 3, 2, 1])], LIMIT) == 4
    assert chain_length([chain([4, 3, 4], [3, 3, 2])], LIMIT) is None
    tree = replace(chain([4, 4], [1, 1]), depths=[2, 4])
    assert chain_length([tree], LIMIT) is None
    assert chain_length([replace(chain([4], [1]), depths=None)], LIMIT) is None
    assert chain_length([chain([0, 0], [0, 0])], LIMIT) is None
    assert chain_length([], LIMIT) is None


def test_an_output_without_steps_says_nothing_of_the_length():
    """Its first token was a stop; one that ends in the one step after it has no room to draft."""
    ended = replace(chain([], []), depths=None, ranks=None)
    at_the_limit = replace(chain([0], [0]), depths=None, ranks=None)
    assert chain_length([ended, chain([4, 4], [3, 1]), at_the_limit], 2) == 4
    assert chain_length([ended, at_the_limit], LIMIT) is None
    # room for four, and nothing drafted: the length follows the text
    assert chain_length([at_the_limit, chain([4, 4], [3, 1])], LIMIT) is None


def test_the_length_is_pooled_over_all_steps():
    samples = [chain([4, 4], [3, 0]), chain([4], [1])]
    assert acceptance_length(samples) == pytest.approx(1 + 4 / 3)


def chains(run, drafts, decoder="fast"):
    """Let a decoder of a run draft chains of `drafts`, of which it accepts two a step."""
    (fast,) = [name for name, key in run.records.keys.items() if key.decoder == decoder]
    steps = {
        "drafted": [drafts] * 3,
        "depths": [drafts] * 3,
        "ranks": [[0, 0]] * 3,
        "refused": [1] * 3,
    }
    run.records.samples[:] = [
        replace(sample, **steps) if sample.key == fast else sample for sample in run.records.samples
    ]
    return run


def test_a_curve_is_read_back(facts, tmp_path):
    (file,) = golden_files(chains(facts(), 3), None, "https://example.org/run")
    assert file.name == "fspad-bench_tiny-fast-gsm8k@bundled-greedy-float64-16.yaml"
    path = tmp_path / file.name
    path.write_text(file.text)
    (curve,) = read_golden(path)
    assert (curve.model, curve.mode, curve.lengths) == ("fspad-bench/tiny", "thinking_off", {3: 3})
    assert file.text.startswith("# Source: https://example.org/run\n")
    assert "# dataset: gsm8k@bundled | greedy | output_len: 16" in file.text


@pytest.mark.parametrize(
    "key",
    [
        {"target": "Qwen/Qwen3-8B", "target_identity": "c0ffee"},
        {"target": "tiny", "target_identity": "ab" * 32},  # a folder of that name
        {"target": "llama3-8b", "target_identity": "ab" * 32},
    ],
)
def test_a_target_that_may_reason_needs_its_mode(facts, key, tmp_path):
    run = chains(facts(**key), 3)
    with pytest.raises(BenchError, match="does not say whether") as caught:
        golden_files(run, None, None)
    assert "--mode thinking_on" in caught.value.hint
    (file,) = golden_files(run, None, None, "thinking_on")
    path = tmp_path / file.name
    path.write_text(file.text)
    assert [curve.mode for curve in read_golden(path)] == ["thinking_on"]


def test_presets_have_one_mode(facts):
    llama = {"target": "llama3-8b", "target_identity": "c0ffee" * 6}
    (file,) = golden_files(chains(facts(**llama), 3), None, None)
    assert "  thinking_off:\n" in file.text
    assert set(WITHOUT_REASONING) == set(PRESETS)  # a new one is looked at before it is added


def test_several_lengths_of_one_decoder_are_one_curve(facts, tmp_path):
    facts()
    both = facts(decoder="long=fast", more=True)
    run = chains(chains(both, 3), 5, "long=fast")
    (file,) = golden_files(run, None, None)
    path = tmp_path / file.name
    path.write_text(file.text)
    assert read_golden(path)[0].lengths == {3: 3, 5: 3}


def two_labels(facts, drafts=(3, 5), options=({"length": 3}, {"length": 5})):
    """A run of two labels of one decoder, `a` and `b`."""
    facts(decoder="a=fast", options=options[0])
    both = facts(decoder="b=fast", options=options[1], more=True)
    return chains(chains(both, drafts[0], "a=fast"), drafts[1], "b=fast")


def test_options_that_state_the_length_do_not_part_a_curve(facts):
    """A chain of n tokens has n + 1 nodes."""
    options = [{"length": n, "nodes": n + 1, "top_k": 3} for n in (3, 5)]
    (file,) = golden_files(two_labels(facts, options=options), None, None)
    assert "labels: a, b | options: {" in file.text
    assert '{"top_k": 3}' in file.text
    assert "3: 3.0\n    5: 3.0\n" in file.text


@pytest.mark.parametrize("drafts", [(3, 5), (3, 3)])
def test_decoders_with_other_options_have_curves_of_their_own(facts, drafts):
    options = [
        {"length": n, "model_sha256": digest} for n, digest in zip(drafts, "xy", strict=True)
    ]
    files = golden_files(two_labels(facts, drafts, options), None, None)
    assert len({file.name for file in files}) == len(files) == 2
    assert [file.text.count(": 3.0") for file in files] == [1, 1]
    assert ["labels: a " in file.text for file in files] == [True, False]


def test_two_labels_with_one_length_have_curves_of_their_own(facts):
    files = golden_files(two_labels(facts, (3, 3), [{"length": 3}] * 2), None, None)
    assert len({file.name for file in files}) == len(files) == 2


def test_two_rows_of_one_label_with_one_length_are_refused(facts):
    """A run that another version of the package resumed."""
    facts()
    run = facts(source_sha256="ff" * 32, more=True)
    steps = {"drafted": [3] * 3, "depths": [3] * 3, "ranks": [[0, 0]] * 3, "refused": [1] * 3}
    run.records.samples[:] = [
        replace(s, **steps) if len(s.committed) == 3 else s for s in run.records.samples
    ]
    with pytest.raises(BenchError, match="fast on gsm8k has 2 rows with chains of 3 tokens"):
        golden_files(run, None, None)


def test_outputs_that_are_not_proven_are_left_out(facts):
    run = chains(facts(), 3)
    run.table[1]["verdict"] = "unverified"
    assert golden_files(run, None, None) == []


def test_caveats_stand_in_the_comments_and_cannot_leave_them(facts):
    run = chains(facts(), 3)
    run.table[1] |= {"noisy": True}
    (file,) = golden_files(run, None, "a\nm: {x: 1}")
    assert "# noisy: other work was running meanwhile" in file.text
    assert "\nm:" not in file.text


def test_a_record_without_chains_is_refused(facts, tmp_path, capsys):
    facts()
    record = str(tmp_path / "record.jsonl")
    assert main(["share", record, "-o", str(tmp_path / "out"), "--as", "golden"]) == 2
    assert "no row of this record drafted chains" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
