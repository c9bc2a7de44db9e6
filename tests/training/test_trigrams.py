"""`train --decoder aded` builds a table of the learned conversations, for one tokenizer."""

import json
import shutil
from dataclasses import replace

import pytest

from fspad_bench.cli import main as cli
from fspad_bench.decoders.aded import Aded
from fspad_bench.drafts.trigrams import ABOUT, VALUES, count_trigrams, load_table
from fspad_bench.models import load
from fspad_bench.models.chat import vocabulary_hash
from fspad_bench.training.conversations import all_conversations, data_hash, read_files
from fspad_bench.training.job import TrainingJob, run
from fspad_bench.training.objective import Recipe
from fspad_bench.util.errors import BenchError


@pytest.fixture(autouse=True)
def tiny_target(tiny, monkeypatch):
    monkeypatch.setattr(load, "load_target", lambda name, **options: tiny)


@pytest.fixture
def job(conversations, tmp_path):
    return TrainingJob("aded", [str(conversations)], tmp_path / "table", "tiny", device="cpu")


def built(job, tiny):
    return load_table(run(job).folder, vocabulary_hash(tiny.tokenizer), "tiny")


@pytest.mark.parametrize("supervise", ["answers", "all"])
def test_the_table_is_of_the_learned_conversations(job, tiny, conversations, supervise):
    table = built(replace(job, recipe=Recipe(supervise=supervise)), tiny)
    learned = [
        c for c in all_conversations(read_files([conversations], 97, 2048)) if not c.held_out
    ]
    texts = [
        (c.tokens, c.answers if supervise == "answers" else [(0, len(c.tokens))]) for c in learned
    ]
    expected = count_trigrams(texts, 97, {})
    assert table.keys.tolist() == expected.keys.tolist()
    assert table.tokens.tolist() == expected.tokens.tolist()
    assert table.values.tolist() == expected.values.tolist()


def test_its_file_says_what_it_was_built_from(job, tiny, conversations):
    trained = run(job)
    about = json.loads((trained.folder / ABOUT).read_text())
    assert about["data_sha256"] == data_hash([conversations])
    assert about["tokenizer"] == vocabulary_hash(tiny.tokenizer)
    assert about["conversations"] > 30
    assert about["trigrams"] >= about["pairs"] > 100
    assert about["held_out"] == trained.figures
    assert 0 <= trained.figures["first"] <= trained.figures["listed"] <= 1


def test_building_again_gives_the_same_table(job, tiny):
    first = built(job, tiny)
    assert built(job, tiny).sha256 == first.sha256


def test_the_decoder_drafts_from_it(job, tiny):
    assert Aded(tiny, table=str(run(job).folder)).trigrams.after(-1, -1) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial": "head"}, "starts from no head"),
        ({"draft_vocabulary": 10}, "holds every token of its data"),
        ({"data": ["none.jsonl"]}, "no such training data"),
        ({"recipe": Recipe(epochs=2)}, "counted, not trained: --epochs does nothing"),
        ({"recipe": Recipe(batch_tokens=9)}, "--batch-tokens does nothing"),
        ({"live": True}, "--live does nothing"),
    ],
)
def test_what_a_table_has_no_use_for_is_refused(job, changes, message):
    with pytest.raises(BenchError, match=message):
        run(replace(job, **changes))


def test_conversations_that_are_all_held_out_make_no_table(job, tmp_path):
    rows = [{"tokens": [1, 2, 3, n], "answers": [[2, 4]], "held_out": True} for n in range(3)]
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(BenchError, match="all 3 usable conversations are held out"):
        run(replace(job, data=[str(path)]))
    assert not job.output.exists()


def test_a_folder_in_the_place_of_its_file_is_refused(job):
    (job.output / VALUES).mkdir(parents=True)
    with pytest.raises(BenchError, match="is a folder"):
        run(job)


def test_a_table_of_another_tokenizer_ends_a_run_before_anything_is_measured(
    job, tmp_path, capsys, monkeypatch
):
    folder = run(job).folder
    about = json.loads((folder / ABOUT).read_text()) | {"tokenizer": "x", "target": "vicuna-7b"}
    (folder / ABOUT).write_text(json.dumps(about))
    words = f"run --target tiny --decoder aded --task gsm8k -D aded.table={folder} --output"
    assert cli.main([*words.split(), str(tmp_path / "records")]) == 2
    assert "built for vicuna-7b, whose tokenizer is not tiny's" in capsys.readouterr().err
    shutil.rmtree(folder)
