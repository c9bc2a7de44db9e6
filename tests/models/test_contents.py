"""Whether a converted model is whole: weights as written, everything else readable."""

import os

import pytest
import torch
from safetensors.torch import save_file

from fspad_bench.models import contents


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text('{"a": 1}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"w": torch.arange(64.0)}, folder / "model.safetensors")
    return folder


def damage(path, how):
    content = path.read_bytes()
    stat = path.stat()
    path.write_bytes(how(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"]
)
@pytest.mark.parametrize("how", [lambda c: b"", lambda c: c[:-1]], ids=["emptied", "cut"])
def test_files_that_cannot_be_read_are_damaged(folder, name, how, is_known):
    if is_known:
        contents.remember(folder)
    assert contents.damaged(folder) == ""
    damage(folder / name, how)
    is_cut_text = name.endswith(".jinja") and (folder / name).stat().st_size
    assert contents.damaged(folder) == ("" if is_cut_text else name)


@pytest.mark.parametrize("name", contents.NEEDED)
def test_files_that_are_gone_are_damaged(folder, name):
    contents.remember(folder)
    (folder / name).unlink()
    assert contents.damaged(folder) == name


def test_other_weights_of_the_same_length_are_damaged(folder):
    assert contents.damaged(folder) == ""
    damage(folder / "model.safetensors", lambda c: c[:-1] + b"\x7f")
    assert contents.damaged(folder) == "model.safetensors"


def test_weights_that_keep_their_time_are_seen_by_a_thorough_look(folder):
    contents.remember(folder)
    path = folder / "model.safetensors"
    time = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    os.utime(path, ns=(time, time))
    assert contents.damaged(folder) == ""
    assert contents.damaged(folder, thorough=True) == "model.safetensors"


def test_a_copy_with_other_times_is_whole(folder):
    contents.remember(folder)
    os.utime(folder / "model.safetensors", ns=(0, 0))
    assert contents.damaged(folder) == ""


def test_edited_texts_are_no_damage(folder):
    contents.remember(folder)
    (folder / "chat_template.jinja").write_text("{{ other }}")
    assert contents.damaged(folder) == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model.safetensors": 5}'])
def test_a_damaged_list_is_written_again(folder, text):
    (folder / contents.CONTENTS).write_text(text)
    assert contents.damaged(folder) == ""
    assert "model.safetensors" in (folder / contents.CONTENTS).read_text()
