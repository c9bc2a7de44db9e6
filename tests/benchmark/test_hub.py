"""The hub as a source of samples, and the choice of a source."""

import hashlib
import json
import shutil

import datasets
import huggingface_hub
import pytest

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.tasks import load, load_card, read_card, resolve_source
from fspad_bench.util.errors import BenchError
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
    "math500": lambda i: {
        "problem": f"What is ${i}+1$?",
        "solution": f"It is $\\boxed{{{i + 1}}}$.",
        "answer": str(i + 1),
        "subject": "Algebra",
        "level": 1,
        "unique_id": f"test/algebra/{i}.json",
    },
    "humaneval": lambda i: {
        "task_id": f"HumanEval/{i}",
        "prompt": f'def add{i}(x):\n    """Add {i}."""\n',
        "canonical_solution": f"    return x + {i}\n",
        "test": f"assert add{i}(1) == {i + 1}",
        "entry_point": f"add{i}",
    },
    "mbpp": lambda i: {
        "source_file": "Benchmark Questions Verification V2.ipynb",
        "task_id": i,
        "prompt": f"Write a function that adds {i}.",
        "code": f"def add(x):\n    return x + {i}",
        "test_imports": [],
        "test_list": [f"assert add(1) == {i + 1}"],
    },
}
PROMPTS = {
    "math500": "What is $1+1$?\nPlease reason step by step, and put your final answer within "
    "\\boxed{}.",
    "humaneval": "Complete the following Python function:\n```python\ndef add1(x):\n"
    '    """Add 1."""\n\n```',
    "mbpp": "Write a function that adds 1. Your code should pass these tests:\nassert add(1) == 2",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hub"


@pytest.fixture
def hub(monkeypatch):
    """Replace `datasets.load_dataset`: it streams `hub["rows"]` and adds its calls to
    `hub["calls"]`.
    """
    seen = {"rows": [], "calls": []}

    def load_dataset(*args, **kwargs):
        seen["calls"].append((args, kwargs))
        return datasets.Dataset.from_list(seen["rows"]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return seen


@pytest.mark.parametrize("name", ON_HUB)
def test_the_hub_gives_80_rows_by_lowest_hash(hub, cache, name):
    card = load_card(name)
    hub["rows"] = [HUB_ROWS[name](i) for i in range(100)]
    data = load(card, "hub", None)
    where = {"split": card.test_split, "revision": card.revision, "streaming": True}
    assert hub["calls"] == [((card.dataset_path, card.dataset_name), where)]
    hashes = [hashlib.sha256(q.turns[0].encode()).hexdigest() for q in data.questions]
    hub["rows"] = hub["rows"][::-1]
    shutil.rmtree(cache)
    assert load(card, "hub", None) == data
    assert len(data.questions) == len({q.id for q in data.questions}) == 80
    assert hashes == sorted(hashes)
    everything = [tasks._from_doc(card, row, "").turns[0] for row in hub["rows"]]
    assert hashes[-1] < sorted(hashlib.sha256(turn.encode()).hexdigest() for turn in everything)[80]
    assert data.source == "hub"
    assert all(len(q.turns) == len(card.doc_to_text) for q in data.questions)
    assert all(bool(q.answers) == bool(card.score) for q in data.questions)


@pytest.mark.parametrize("name", PROMPTS)
def test_rows_of_an_acceptance_set_become_the_fields_prompts(hub, name):
    hub["rows"] = [HUB_ROWS[name](1)]
    (question,) = load(load_card(name), "hub", None).questions
    assert question.turns == [PROMPTS[name]]
    assert question.answers == (["2"] if name == "math500" else [])


def test_rows_that_were_taken_once_need_no_network(hub, cache, monkeypatch):
    hub["rows"] = [HUB_ROWS["gsm8k"](i) for i in range(100)]
    first = load(load_card("gsm8k"), "hub", None)
    (kept,) = cache.iterdir()
    assert len(kept.read_text().splitlines()) == 80
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert load(load_card("gsm8k"), "hub", None) == first


def test_kept_rows_that_are_damaged_are_asked_for_again(hub, cache):
    hub["rows"] = [HUB_ROWS["gsm8k"](i) for i in range(3)]
    first = load(load_card("gsm8k"), "hub", None)
    (kept,) = cache.iterdir()
    kept.write_text(kept.read_text()[:-20])
    assert load(load_card("gsm8k"), "hub", None) == first
    assert len(hub["calls"]) == 2


def test_a_cache_that_takes_nothing_is_told_and_no_error(hub, cache, capsys):
    hub["rows"] = [HUB_ROWS["gsm8k"](i) for i in range(3)]
    cache.parent.mkdir()
    cache.touch()
    assert len(load(load_card("gsm8k"), "hub", None).questions) == 3
    assert "the samples of gsm8k are not kept in the cache" in capsys.readouterr().err


def test_a_column_that_changed_its_name_is_one_clear_error(hub):
    hub["rows"] = [{"query": "1 and 1?", "answer": "2"}]
    with pytest.raises(BenchError, match="openai/gsm8k: 'question' is undefined"):
        load(load_card("gsm8k"), "hub", None)


def test_a_gated_data_set_says_where_to_accept_its_terms(monkeypatch):
    def gated(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(BenchError) as caught:
        load(load_card("gsm8k"), "hub", None)
    assert "https://huggingface.co/datasets/openai/gsm8k" in caught.value.hint
    assert "hf auth login" in caught.value.hint


@pytest.mark.parametrize("name", ["humaneval", "speed_bench"])
def test_without_bundled_samples_the_error_says_what_to_give(name):
    with pytest.raises(BenchError, match=f"no samples of {name} are bundled") as caught:
        load(load_card(name), "bundled", None)
    assert "--data FILE.jsonl" in caught.value.hint
    assert ("--data hub" in caught.value.hint) == (name == "humaneval")


def test_speed_bench_is_read_from_prepared_data_and_placeholders_are_refused(tmp_path):
    row = {"question_id": "q1", "category": "coding", "turns": ["Sort.", "Faster."], "source": "x"}
    path = tmp_path / "qualitative.jsonl"
    path.write_text(json.dumps(row))
    card = load_card("speed_bench")
    (question,) = load(card, str(path), None).questions
    assert question == tasks.Question("q1", ["Sort.", "Faster."], [], "coding")
    path.write_text(json.dumps(row | {"turns": [card.placeholder]}))
    with pytest.raises(BenchError, match="is a placeholder: FULL BENCHMARK") as caught:
        load(card, str(path), None)
    assert "prepare the data of speed_bench" in caught.value.hint


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
