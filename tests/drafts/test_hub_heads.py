"""A head is named by a folder or a repository of the hub; the hub is a double here."""

import huggingface_hub
import pytest

from fspad_bench.drafts.drafter import find_head
from fspad_bench.drafts.head import shipped
from fspad_bench.drafts.hub_heads import head_folder
from fspad_bench.drafts.language_network import trained_model
from fspad_bench.util.errors import BenchError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`hub[0]` is what the hub gives: a folder, or an error; the calls follow."""
    asked = [tmp_path]

    def folder(repo, revision):
        asked.append((repo, revision))
        if isinstance(asked[0], Exception):
            raise asked[0]
        return asked[0]

    def snapshot_download(repo, *, revision, allow_patterns):
        assert "*.safetensors" in allow_patterns
        return str(folder(repo, revision))

    def hf_hub_download(repo, filename, *, revision):
        return str((folder(repo, revision) / filename).resolve(strict=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return asked


@pytest.mark.parametrize(
    ("name", "asked"),
    [("lab/head", ("lab/head", None)), ("lab/head@v1.0", ("lab/head", "v1.0"))],
)
def test_a_repository_is_fetched(hub, tmp_path, name, asked):
    assert head_folder(name) == tmp_path
    assert hub[1:] == [asked]


@pytest.mark.parametrize("name", ["head", "./lab/head", "a/b/c", "~/head", "/lab/head", "../x"])
def test_other_names_are_folders(hub, name):
    assert str(head_folder(name)).endswith(name.removeprefix("./").removeprefix("~/"))
    assert hub[1:] == []


def test_a_folder_that_is_there_is_taken_first(hub, tmp_path, monkeypatch):
    (tmp_path / "lab" / "head").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(head_folder("lab/head")) == "lab/head"
    assert hub[1:] == []


def test_a_hub_that_fails_is_one_clear_error(hub):
    hub[0] = ConnectionError("no route\nto host")
    with pytest.raises(BenchError, match="and none by that name from the hub: no route") as caught:
        head_folder("lab/head")
    assert "OWNER/NAME[@REVISION]" in caught.value.hint


def test_a_decoder_takes_a_head_from_the_hub(hub, tiny):
    hub[0] = shipped("eagle", "tiny")
    head = find_head("lab/eagle", None, tiny)
    assert head.target == "tiny"
    assert hub[1:] == [("lab/eagle", None)]


def test_a_trained_draft_model_is_taken_from_the_hub(hub, tiny):
    hub[0] = shipped("draft_model", "tiny")
    head = trained_model("lab/small@v1", tiny)
    assert head.network.architecture == "draft_model"
    assert set(hub[1:]) == {("lab/small", "v1")}


@pytest.mark.parametrize("error", [None, ConnectionError("no route")])
def test_another_language_model_of_the_hub_is_no_trained_one(hub, tiny, error):
    """Its weights are not fetched to see that."""
    hub[0] = error or hub[0]
    assert trained_model("lab/model", tiny) is None
    assert hub[1:] == [("lab/model", None)]
