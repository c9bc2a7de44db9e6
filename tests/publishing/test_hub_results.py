"""`.eval_results/*.yaml`: read back by the hub's own library, with notes that say the caveats."""

import yaml
from huggingface_hub import parse_eval_result_entries

from fspad_bench.publishing.hub_results import Published, result_files

SPEEDS = Published("lab/speeds", "https://example.org/record.jsonl")


def read_back(files):
    """file name -> entries, as huggingface_hub reads them."""
    return {
        file.name: parse_eval_result_entries(yaml.safe_load(yaml.safe_dump(file.entries)))
        for file in files
    }


def test_a_score_goes_to_the_tasks_own_benchmark(facts, of_the_hub):
    files = read_back(result_files(facts(score=37.5, **of_the_hub), Published()))
    assert list(files) == ["gsm8k-hub-vanilla-greedy.yaml", "gsm8k-hub-fast-greedy.yaml"]
    (entry,) = files["gsm8k-hub-vanilla-greedy.yaml"]
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 37.5)
    assert entry.dataset_revision == "e53f048856ff4f594e959d75785d2c2d37b678ee"
    assert entry.date == "2026-11-22T12:16:24+00:00"
    assert "accuracy in percent on 6 questions of the data set" in entry.notes
    assert entry.source_url is None


def test_a_score_says_of_how_many_questions_it_is(facts, of_the_hub):
    run = facts(score=37.5, **of_the_hub)
    run.records.scored.update(dict.fromkeys(run.records.keys, 4))
    for file in result_files(run, Published()):
        assert "accuracy in percent on 4 questions" in file.entries[0]["notes"]
    for row in run.table:
        row["score"] = float("nan")
    assert result_files(run, Published()) == []


def test_a_row_has_its_own_generations(facts):
    """A run that another version of the package resumed holds two rows of each decoder."""
    facts(2)
    run = facts(6, source_sha256="ff" * 32, more=True)
    assert [len(run.samples(row)) for row in run.table] == [2, 2, 6, 6]


def test_other_prompts_are_no_result_of_the_benchmark(facts, of_the_hub):
    assert result_files(facts(score=37.5), Published()) == []
    other_card = facts(score=37.5, **of_the_hub | {"card_sha256": "00" * 32})
    assert result_files(other_card, Published()) == []
    assert result_files(facts(**of_the_hub), Published()) == []  # nothing was scored


def test_speeds_go_to_a_benchmark_of_speeds(facts):
    files = read_back(result_files(facts(score=37.5), SPEEDS))
    (entries,) = files.values()
    assert {entry.dataset_id for entry in entries} == {"lab/speeds"}
    values = {entry.task_id: entry.value for entry in entries}
    assert values.keys() == {
        "gsm8k_speedup",
        "gsm8k_speedup_end_to_end",
        "gsm8k_tokens_per_step",
    }
    assert values["gsm8k_tokens_per_step"] == 3.0
    assert entries[0].source_url == "https://example.org/record.jsonl"
    for word in ("95% interval 2.000 to 2.000", "decoder fast", "verdict exact", "greedy"):
        assert word in entries[0].notes
    assert "a machine" in entries[0].notes


def test_notes_hold_every_caveat(facts):
    run = facts(2)
    run.table[1] |= {"noisy": True, "verdict": "lossy"}
    (file,) = result_files(run, SPEEDS)
    for entry in file.entries:
        assert "verdict lossy" in entry["notes"]
        assert "lossy: its output is not the target's own" in entry["notes"]
        assert "noisy: other work was running" in entry["notes"]
        assert "too few prompts for an interval" in entry["notes"]


def test_two_settings_of_one_decoder_have_two_files(facts):
    run = facts()
    run.table.append({**run.table[1], "options": {"depth": 4}})
    assert len({file.name for file in result_files(run, SPEEDS)}) == 2
