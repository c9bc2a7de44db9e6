"""The hub as a source of samples, and the choice of a source."""

import hashlib

import datasets
import huggingface_hub
import pytest

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.tasks import load, load_card, read_card, resolve_source
from fspad_bench.errors import BenchError
from fspad_bench.util.paths import data_folder

CARDS = sorted(data_folder("tasks").rglob("*.yaml"))
ON_HUB = [path.stem for path in CARDS if read_card(path).dataset_path]


HUB_ROWS = {
    "gsm8k": lambda i: {"question": f"{i} and 1?", "answer": f"#### {i + 1}"},
    "wmt": lambda i: {"translation": {"de": f"Satz {i}", "en": f"sentence {i}"}},
    "cnn_dm": lambda i: {
        "article": f"Long {i}.",
        "highlights": f"Short {i}.",
        "id": "the same everywhere",
    },
    "nq": lambda i: {"question": f"what is {i}", "answer": [str(i), "x"]},
    "mt_bench": lambda i: {
        "prompt": [f"One {i}.", "Two."],
        "prompt_id": i,
        "category": "math",
        "reference": [],
    },
}


@pytest.fixture
def hub(monkeypatch):
    """Replace `datasets.load_dataset`: it returns `hub["rows"]` and adds its calls to
    `hub["calls"]`.
    """
    seen = {"rows": [], "calls": []}

    def load_dataset(*args, **kwargs):
        seen["calls"].append((args, kwargs))
        return seen["rows"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return seen


@pytest.mark.parametrize("name", ON_HUB)
def test_the_hub_gives_80_rows_by_lowest_hash(hub, name):
    card = load_card(name)
    hub["rows"] = [HUB_ROWS[name](i) for i in range(100)]
    data = load(card, "hub", None)
    where = {"split": card.test_split, "revision": card.revision}
    assert hub["calls"] == [((card.dataset_path, card.dataset_name), where)]
    hashes = [hashlib.sha256(q.turns[0].encode()).hexdigest() for q in data.questions]
    hub["rows"] = hub["rows"][::-1]
    assert load(card, "hub", None) == data
    assert len(data.questions) == len({q.id for q in data.questions}) == 80
    assert hashes == sorted(hashes)
    everything = [tasks._from_doc(card, row, "").turns[0] for row in hub["rows"]]
    assert hashes[-1] < sorted(hashlib.sha256(turn.encode()).hexdigest() for turn in everything)[80]
    assert data.source == "hub"
    assert all(len(q.turns) == len(card.doc_to_text) for q in data.questions)
    assert all(bool(q.answers) == bool(card.score) for q in data.questions)


def test_a_row_that_the_hub_repeats_counts_once(hub):
    hub["rows"] = [{"question": "same", "answer": "1"}] * 3 + [{"question": "other", "answer": "2"}]
    assert len(load(load_card("gsm8k"), "hub", None).questions) == 2


def test_the_limit_is_taken_of_those_80(hub):
    hub["rows"] = [HUB_ROWS["gsm8k"](i) for i in range(100)]
    ids = [q.id for q in load(load_card("gsm8k"), "hub", None).questions]
    assert [q.id for q in load(load_card("gsm8k"), "hub", 4).questions] == ids[::20]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route\nto host"),
        OSError(),
        ValueError("trust_remote_code"),
        RuntimeError("x"),
    ],
)
def test_a_failing_hub_is_one_clear_error(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(BenchError, match=r"cannot load openai/gsm8k@\w{7} from the hub") as caught:
        load(load_card("gsm8k"), "hub", None)
    assert "\n" not in caught.value.message
    assert "--data bundled" in caught.value.hint


def test_rag_has_no_hub_data(hub):
    with pytest.raises(BenchError, match="'rag' has no data set on the hub"):
        load(load_card("rag"), "hub", None)
    assert not hub["calls"]


class Api:
    """A double of the hub's API, which answers or raises `error`."""

    timeouts = None
    error = None

    def dataset_info(self, name, *, timeout):
        self.timeouts.append(timeout)
        if self.error:
            raise self.error


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "timeouts", [])


def cards(*names):
    return [load_card(name) for name in names]


def test_auto_is_the_hub_where_the_hub_answers(online):
    assert resolve_source("auto", cards("gsm8k", "rag", "nq")) == {
        "gsm8k": "hub",
        "rag": "bundled",
        "nq": "hub",
    }
    assert len(Api.timeouts) == 1
    assert 0 < Api.timeouts[0] <= 5


def test_auto_is_bundled_where_the_hub_fails(online, monkeypatch):
    monkeypatch.setattr(Api, "error", TimeoutError("too slow"))
    assert resolve_source("auto", cards("gsm8k", "rag")) == {"gsm8k": "bundled", "rag": "bundled"}


def test_auto_is_bundled_in_offline_mode_without_a_request(online, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve_source("auto", cards("gsm8k")) == {"gsm8k": "bundled"}
    assert not Api.timeouts


@pytest.mark.parametrize("wanted", ["hub", "bundled", "spec-bench=x", "mine.jsonl"])
def test_a_named_source_is_taken(online, wanted):
    assert resolve_source(wanted, cards("gsm8k", "rag")) == {"gsm8k": wanted, "rag": wanted}
    assert not Api.timeouts
