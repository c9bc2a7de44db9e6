"""A data set is written in whole shards, resumes to the same end, and never mixes settings."""

import json
import multiprocessing
import shutil

import pytest
import torch

from fspad_bench.distill import conversations, writer
from fspad_bench.distill.imported import read_given
from fspad_bench.distill.lock import exclusive
from fspad_bench.distill.shards import answer_tokens, shard_files
from fspad_bench.distill.writer import distill_given
from fspad_bench.engine.batch import Wave
from fspad_bench.models.tiny import TEMPLATE
from fspad_bench.training.conversations import all_conversations, read_files
from fspad_bench.util.errors import BenchError
from fspad_bench.util.provenance import environment


def content(folder):
    return [path.read_text() for path in shard_files(folder)]


def read(folder):
    return all_conversations(read_files([folder], 97, 8192))


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def shared(tiny, shorten, tmp_path_factory):
    """Two data sets, of 100 and of 300 tokens, which tests copy."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        folder = tmp_path_factory.mktemp("sets")
        for tokens in (100, 300):
            writer.distill_own(tiny, folder / f"{tokens}", tokens=tokens, seed=3, slots=8, shard=8)
    return folder


@pytest.fixture
def begun(shared, tmp_path):
    """A copy of the data set of 100 tokens, which `write` made as it makes others."""
    return shutil.copytree(shared / "100", tmp_path / "set")


@pytest.fixture
def whole(shared):
    """The content of a data set as `write` makes it."""
    return content(shared / "300")


def test_a_data_set_has_as_many_answer_tokens_as_were_asked_for(write, tmp_path):
    folder = write(tmp_path / "set", tokens=500)
    counts = [answer_tokens(path) for path in shard_files(folder)]
    assert manifest(folder)["answer_tokens"] == sum(counts) >= 500 > sum(counts[:-1])
    assert manifest(folder)["shards"] == len(counts) >= 2
    assert read(folder)


def test_an_interrupted_set_continues_to_the_same_end(write, tmp_path, monkeypatch):
    whole = content(write(tmp_path / "whole", tokens=700))
    real = writer.ConversationGenerator.generate
    calls = []

    def interrupted(self, count):
        calls.append(1)
        is_third = len(calls) == 3
        rows = yield from real(self, count)
        if is_third:
            raise KeyboardInterrupt
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(writer.ConversationGenerator, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "torn", tokens=700)
    written = content(tmp_path / "torn")
    assert written == whole[: len(written)]
    assert len(written) < len(whole)
    assert content(write(tmp_path / "torn", tokens=700)) == whole


@pytest.mark.sampled(2)
@pytest.mark.parametrize("count", [1, 7])
def test_shards_do_not_depend_on_how_many_are_in_progress(
    count, write, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(writer, "_in_progress", lambda slots, shard: count)
    assert content(write(tmp_path / "other")) == whole


@pytest.mark.parametrize(
    ("slots", "shard", "count"), [(64, 128, 3), (64, 64, 3), (64, 8, 16), (2048, 64, 64)]
)
def test_small_shards_fill_the_batch_together(slots, shard, count):
    assert writer._in_progress(slots, shard) == count


def test_no_shard_is_started_that_is_not_needed(write, tmp_path, monkeypatch):
    real = writer.ConversationGenerator.generate
    started = []

    def counted(self, count):
        started.append(1)
        return real(self, count)

    monkeypatch.setattr(writer.ConversationGenerator, "generate", counted)
    folder = write(tmp_path / "set", tokens=100)
    assert len(started) == len(shard_files(folder)) == 1
    more = write(tmp_path / "set", tokens=4 * answer_tokens(shard_files(folder)[0]))
    assert len(shard_files(more)) <= len(started) <= len(shard_files(more)) + 1


def test_a_missing_shard_is_written_again(write, shared, whole, tmp_path):
    folder = shutil.copytree(shared / "300", tmp_path / "set")
    (folder / "shard-00000.jsonl").unlink()
    assert content(write(folder)) == whole
    assert manifest(folder)["shards"] == len(whole)


def test_a_file_is_refused(write, tmp_path):
    (tmp_path / "set").write_text("")
    with pytest.raises(BenchError, match="is a file"):
        write(tmp_path / "set")


def test_more_tokens_continue_a_complete_set(write, begun):
    first = content(begun)
    more = content(write(begun, tokens=500))
    assert len(more) > len(first)
    assert more[: len(first)] == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 4}, "another seed: 3, not 4"), ({"shard": 5}, "another shard")],
)
def test_other_settings_are_refused(write, begun, changes, message):
    with pytest.raises(BenchError, match=message):
        write(begun, **changes)


def test_a_set_of_another_recipe_stays_as_it_is_and_does_not_grow(write, begun, monkeypatch):
    before = manifest(begun)
    monkeypatch.setattr(conversations, "RECIPE_VERSION", conversations.RECIPE_VERSION + 1)
    write(begun, tokens=100)
    assert manifest(begun) == before
    with pytest.raises(BenchError, match="another recipe"):
        write(begun)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RECIPE_VERSION", 0),
        ("TEMPERATURES", (0.0, 0.5, 1.0)),
        ("WEIGHTS", (0.5, 0.3, 0.2)),
        ("MATERIAL", ("chat",)),
        ("FOLLOW_UPS", 0.5),
        ("KINDS", {"chat": conversations.KINDS["chat"]}),
        ("KINDS", conversations.KINDS | {"chat": conversations.KINDS["chat"]._replace(length=1)}),
        ("QUESTION_LENGTH", 97),
        ("HELD_OUT_EVERY", 10),
    ],
)
def test_every_table_and_the_version_decide_the_recipe(monkeypatch, name, value):
    before = conversations.recipe()
    monkeypatch.setattr(conversations, name, value)
    assert conversations.recipe() != before


def test_a_folder_of_something_else_is_refused_and_left_alone(write, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BenchError, match="is not empty and holds no data set"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_target_that_does_not_answer_is_refused(write, tmp_path, monkeypatch):
    def silent(self, count):
        yield Wave([], [])
        return []

    monkeypatch.setattr(writer.ConversationGenerator, "generate", silent)
    with pytest.raises(BenchError, match="does not answer"):
        write(tmp_path / "set")


@pytest.mark.parametrize("regenerate", [False, True])
def test_given_conversations_become_a_data_set(tiny, short, tmp_path, regenerate):
    source = tmp_path / "given.jsonl"
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    rows = [{"messages": turn}, {"messages": turn * 2}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = read_given(str(source))
    folder = distill_given(
        tiny, tmp_path / "set", given, regenerate=regenerate, seed=0, slots=2, shard=1
    )
    assert len(shard_files(folder)) == 2
    first, second = read(folder)
    assert (len(first.answers), len(second.answers)) == (1, 2)
    answer = tiny.tokenizer.decode(first.tokens[slice(*first.answers[0])])
    assert (answer == "Hello there<|end|>") != regenerate


def hold(folder, is_held, may_end):
    with exclusive(folder):
        is_held.set()
        may_end.wait(60)


def test_a_folder_in_use_by_another_process_is_refused_at_once(write, tmp_path):
    folder = tmp_path / "set"
    context = multiprocessing.get_context("fork")
    is_held = context.Event()
    may_end = context.Event()
    process = context.Process(target=hold, args=(folder, is_held, may_end))
    process.start()
    try:
        assert is_held.wait(60)
        with pytest.raises(BenchError, match=f"is in use by process {process.pid} on") as raised:
            write(folder, tokens=100)
        assert "another --output" in raised.value.hint
    finally:
        may_end.set()
        process.join(60)
    assert content(write(folder, tokens=100))
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "shard-00000.jsonl"]


def test_the_lock_of_a_killed_process_does_not_count_as_content(write, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / ".lock").write_text("")
    (folder / ".lock-owner").write_text("process 1 on elsewhere")
    assert content(write(folder, tokens=100))


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path / "set"):
        raise KeyError
    assert not (tmp_path / "set").exists()
    (tmp_path / "mine").mkdir()
    with exclusive(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


TURN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
SYSTEM = {"role": "system", "content": "be brief"}
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
LAST_OTHERWISE = TEMPLATE.replace(
    "m['content']", "('<think>' if loop.last and m['role'] == 'assistant' else '') + m['content']"
)
INST = TEMPLATE.replace("{% if add_generation_prompt %}{{ 'a:' }}{% endif %}", "")


@pytest.fixture
def template(tiny, monkeypatch):
    return lambda text: monkeypatch.setattr(tiny.tokenizer, "chat_template", text)


def given_file(folder, *rows):
    source = folder / "given.jsonl"
    source.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return read_given(str(source))


@pytest.mark.parametrize("text", [LAST_OTHERWISE, INST], ids=["last otherwise", "not opened"])
def test_a_template_of_another_kind_gives_a_data_set(write, template, tmp_path, text):
    """Qwen3's writes the last answer otherwise than earlier ones; [INST] has no opening."""
    template(text)
    conversations = read(write(tmp_path / "set", tokens=300))
    assert sum(conversation.answer_tokens() for conversation in conversations) >= 300


@pytest.mark.parametrize("regenerate", [False, True])
def test_what_a_template_refuses_is_left_out_by_name(tiny, short, template, tmp_path, regenerate):
    template(STRICT + TEMPLATE)
    given = given_file(tmp_path, TURN, [SYSTEM, *TURN])
    folder = distill_given(
        tiny, tmp_path / "set", given, regenerate=regenerate, seed=0, slots=2, shard=4
    )
    assert len(read(folder)) == 1
    assert given.left_out == ["'be brief': the chat template refuses a conversation: no system"]


@pytest.mark.parametrize("regenerate", [False, True])
def test_what_was_left_out_before_an_interruption_is_counted(
    tiny, short, template, tmp_path, monkeypatch, regenerate
):
    template(STRICT + TEMPLATE)

    def left_out():
        given = given_file(tmp_path, TURN, [SYSTEM, *TURN], TURN, TURN, [SYSTEM, *TURN])
        sizes = {"slots": 2, "shard": 2}
        distill_given(tiny, tmp_path / "set", given, regenerate=regenerate, seed=0, **sizes)
        return given.left_out

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_check_answers", interrupt)
        with pytest.raises(KeyboardInterrupt):
            left_out()
    assert [path.name for path in shard_files(tmp_path / "set")] == ["shard-00000.jsonl"]
    first, last = left_out()
    assert first.startswith("a conversation of shard-00000.jsonl: refused by the chat template")
    assert last == "'be brief': the chat template refuses a conversation: no system"
    assert len(left_out()) == 2  # of a complete set


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("regenerate", [False, True])
def test_given_data_of_no_use_are_an_error(tiny, short, template, tmp_path, regenerate):
    template(STRICT + TEMPLATE)
    given = given_file(tmp_path, [SYSTEM, *TURN])
    with pytest.raises(BenchError, match="no conversation could be used; 'be brief'"):
        distill_given(
            tiny, tmp_path / "set", given, regenerate=regenerate, seed=0, slots=2, shard=4
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files_sha256": "edited"}, "another target_sha256: , not edited"),
        ({"identity": "other"}, "another identity"),
        ({"dtype": torch.bfloat16}, "another dtype: float64, not bfloat16"),
    ],
)
def test_another_target_does_not_continue_a_set(write, tiny, begun, monkeypatch, change, message):
    for name, value in change.items():
        monkeypatch.setattr(tiny, name, value)
    with pytest.raises(BenchError, match=message):
        write(begun)


def test_a_manifest_names_the_environments_that_wrote(write, begun, monkeypatch, capsys):
    (first,) = manifest(begun)["written_with"]
    assert first == environment(torch.get_num_threads())
    assert first.keys() == {"torch", "source_sha256", "machine", "threads"}
    other = first | {"torch": "9"}
    monkeypatch.setattr(writer, "environment", lambda threads: other)
    write(begun, tokens=100)  # nothing is added
    assert manifest(begun)["written_with"] == [first]
    assert "other software" not in capsys.readouterr().err
    write(begun, tokens=300)
    assert manifest(begun)["written_with"] == [first, other]
    assert "was begun with other software" in capsys.readouterr().err


def test_a_manifest_of_an_earlier_version_still_grows(write, begun):
    older = {name: value for name, value in manifest(begun).items() if name not in writer.SINCE}
    del older["written_with"]
    (begun / "manifest.json").write_text(json.dumps(older))
    write(begun, tokens=100)
    assert manifest(begun).keys() == older.keys() | {"written_with"}
    write(begun, tokens=300)
    assert manifest(begun)["dtype"] == "float64"
