"""Every source that samples may come from, how many are taken, and files that cannot be used."""

import hashlib
import json
import re

import datasets
import huggingface_hub
import pytest

from fspad_bench.benchmark import tasks as task
from fspad_bench.benchmark.tasks import load, load_card, read_card, read_jsonl, resolve_source
from fspad_bench.errors import BenchError
from fspad_bench.util.paths import data_folder

CARDS = sorted(data_folder("tasks").rglob("*.yaml"))
NAMES = [path.stem for path in CARDS]
ON_HUB = [path.stem for path in CARDS if read_card(path).dataset_path]


@pytest.fixture
def write(tmp_path):
    """`write(rows)`: a file of these lines; a row that is text stands as it is."""

    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        lines = [
            row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows
        ]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


def bundled(name):
    return load(load_card(name), "bundled", None)


def raw(name):
    return [doc for _, doc in read_jsonl(load_card(name).bundled)]


# how many, and which


@pytest.fixture
def twenty(write):
    return write([{"id": f"q{i:02}", "question": f"{i}?", "answer": str(i)} for i in range(20)])


@pytest.mark.parametrize(
    ("limit", "ids"),
    [
        (1, [0]),
        (2, [0, 10]),
        (4, [0, 5, 10, 15]),
        (7, [0, 2, 5, 8, 11, 14, 17]),
        (20, range(20)),
        (21, range(20)),
        (None, range(20)),
    ],
)
def test_a_limit_takes_evenly_spaced_samples(twenty, limit, ids):
    data = load(load_card("gsm8k"), str(twenty), limit)
    assert [q.id for q in data.questions] == [f"q{i:02}" for i in ids]


def test_the_hash_is_of_exactly_what_is_asked(twenty, write):
    card = load_card("gsm8k")
    whole = load(card, str(twenty), None).sha256
    assert load(card, str(twenty), 20).sha256 == whole
    assert load(card, str(twenty), 19).sha256 != whole
    rows = [
        {"id": f"q{i:02}", "question": f"{i}?", "answer": str(i), "more": "x"} for i in range(20)
    ]
    assert load(card, str(write(rows, "same.jsonl")), None).sha256 == whole
    for change in ({"id": "z"}, {"question": "why?"}, {"answer": "7"}):
        changed = write([rows[0] | change, *rows[1:]], "other.jsonl")
        assert load(card, str(changed), None).sha256 != whole


@pytest.mark.parametrize(
    "source", ["bundled", "hub", "spec-bench=/a=b/q.jsonl", "spec-bench=q.jsonl", "/a=b/my.jsonl"]
)
def test_a_source_has_a_short_name(source):
    expected = {"b": "bundled", "h": "hub", "s": "spec-bench", "/": "my.jsonl"}[source[0]]
    assert task._label(source) == expected


# a file of the user's


def test_documents_go_through_the_cards_template(write):
    path = write([{"question": "who are you", "answer": ["me", "I"]}])
    (question,) = load(load_card("nq"), str(path), None).questions
    assert (question.turns, question.answers) == (["Who are you?"], ["me", "I"])
    assert re.fullmatch("[0-9a-f]{12}", question.id)


def test_turns_stand_as_they_are(write):
    path = write(
        [{"turns": ["One {{ x }}", "two"]}, {"turns": ["three"], "answers": ["3"], "id": 0}]
    )
    first, second = load(load_card("gsm8k"), str(path), None).questions
    assert (first.turns, first.answers) == (["One {{ x }}", "two"], [])
    assert (second.turns, second.answers, second.id) == (["three"], ["3"], "0")


@pytest.mark.parametrize(
    ("answer", "expected"), [(42, ["42"]), ([1, 2], ["1", "2"]), ("a 7", ["a 7"]), (0, ["0"])]
)
def test_answers_may_be_numbers(write, answer, expected):
    path = write([{"question": "q", "answer": answer}])
    assert load(load_card("gsm8k"), str(path), None).questions[0].answers == expected


def test_any_character_may_stand_in_a_line(write):
    text = "a\u2028b\x85c\x0bd 🦆 self"
    path = write([{"question": text, "answer": "1", "self": 1, "loop": 2}])
    assert load(load_card("gsm8k"), str(path), None).questions[0].turns == [text]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(write):
    path = write(["", '{"question": "q", "answer": "1"}', "  ", ""])
    assert len(load(load_card("gsm8k"), str(path), None).questions) == 1
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "q", "answer": "1"}\r\n')
    assert len(load(load_card("gsm8k"), str(path), None).questions) == 1


GOOD = {"question": "q", "answer": "1"}


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("gsm8k", [GOOD, "{no json"], r"data\.jsonl:2: not JSON"),
        ("gsm8k", [GOOD, "", "nor this"], r"data\.jsonl:3: not JSON"),
        ("gsm8k", [GOOD, "[1]"], r"data\.jsonl:2: not a JSON object"),
        ("gsm8k", [], "is empty"),
        ("gsm8k", ["", " "], "is empty"),
        ("gsm8k", [GOOD, {"answer": "1"}], r"data\.jsonl:2: 'question' is undefined"),
        (
            "gsm8k",
            [GOOD, {"question": None, "answer": "1"}],
            r"data\.jsonl:2: 'question' is undefined",
        ),
        ("gsm8k", [GOOD, {"question": "q"}], r"data\.jsonl:2: .*answer.*missing"),
        ("gsm8k", [{"question": "q", "answer": None}], r"data\.jsonl:1: .*answer.*missing"),
        ("wmt", [{"translation": {"de": "x"}}], r"data\.jsonl:1: .*translation\.en.*missing"),
        ("wmt", [{"de": "x", "en": "y"}], r"data\.jsonl:1: 'translation' is undefined"),
        ("mt_bench", [{"prompt": ["only one"]}], r"data\.jsonl:1: .*undefined|no element"),
        ("rag", [{"passages": 5, "question": "q", "answers": ["a"]}], r"data\.jsonl:1: "),
        ("nq", [{"question": 5, "answer": ["a"]}], r"data\.jsonl:1: "),
        ("gsm8k", [{"turns": "not a list"}], r"data\.jsonl:1: `turns` is no list"),
        ("gsm8k", [{"turns": []}], r"data\.jsonl:1: `turns` is no list"),
        ("gsm8k", [{"turns": ["a", 5]}], r"data\.jsonl:1: `turns` is no list"),
        ("gsm8k", [{"turns": ["a", " "]}], r"data\.jsonl:1: `turns` is no list"),
        ("gsm8k", [GOOD | {"id": "x"}, GOOD | {"id": "x"}], "two samples of gsm8k are called 'x'"),
        ("gsm8k", [GOOD, GOOD], "two samples of gsm8k are called"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(write, name, rows, said):
    with pytest.raises(BenchError, match=said) as caught:
        load(load_card(name), str(write(rows)), None)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_file_that_is_no_text_is_said(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(BenchError, match=r"data\.jsonl:1: not JSON"):
        load(load_card("gsm8k"), str(tmp_path / "data.jsonl"), None)


@pytest.mark.parametrize(
    "source", ["gone.jsonl", "spec-bench=gone.jsonl", "~nobody-here/x.jsonl", "spec-bench="]
)
def test_a_missing_file_is_said(source):
    with pytest.raises(BenchError, match="no such data file"):
        load(load_card("gsm8k"), source, None)


@pytest.mark.parametrize("source", ["bundeld", "spec_bench=x.jsonl", "huh=1"])
def test_an_unknown_source_is_said(source):
    with pytest.raises(BenchError, match=f"unknown data source '{source}'") as caught:
        load(load_card("gsm8k"), source, None)
    assert "bundled" in caught.value.hint


def test_a_path_may_hold_an_equals_sign(tmp_path):
    folder = tmp_path / "a=b"
    folder.mkdir()
    (folder / "x.jsonl").write_text(json.dumps(GOOD) + "\n")
    assert load(load_card("gsm8k"), str(folder / "x.jsonl"), None).source == "x.jsonl"


# Spec-Bench


SPEC_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    {
        "question_id": 121,
        "category": "coding",
        "turns": ["Code.", "More."],
        "reference": ["first", "second"],
    },
    {
        "question_id": 161,
        "category": "translation",
        "turns": ["Translate."],
        "reference": ["Done."],
    },
    {
        "question_id": 241,
        "category": "summarization",
        "turns": ["Summarize."],
        "reference": ["Short."],
    },
    {"question_id": 321, "category": "qa", "turns": ["Who?"]},
    {
        "question_id": 401,
        "category": "math_reasoning",
        "turns": ["How many?"],
        "reference": ["#### 4"],
    },
    {
        "question_id": 402,
        "category": "math_reasoning",
        "turns": ["How few?"],
        "reference": ["#### 2"],
    },
    {
        "question_id": 481,
        "category": "rag",
        "turns": ["Passages. What?"],
        "reference": [["this", "that"]],
    },
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mt_bench", [("81", ["Write.", "Again."], []), ("121", ["Code.", "More."], [])]),
        ("wmt", [("161", ["Translate."], ["Done."])]),
        ("cnn_dm", [("241", ["Summarize."], ["Short."])]),
        ("nq", [("321", ["Who?"], [])]),
        ("gsm8k", [("401", ["How many?"], ["#### 4"]), ("402", ["How few?"], ["#### 2"])]),
        ("rag", [("481", ["Passages. What?"], ["this", "that"])]),
    ],
)
def test_spec_bench_rows_go_to_their_tasks(write, name, expected):
    data = load(load_card(name), f"spec-bench={write(SPEC_BENCH)}", None)
    assert data.source == "spec-bench"
    assert [(q.id, q.turns, q.answers) for q in data.questions] == expected


def test_every_category_belongs_to_one_task():
    categories = [category for name in NAMES for category in load_card(name).spec_bench]
    assert len(categories) == len(set(categories)) == 13


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (SPEC_BENCH[:2], "holds no question of gsm8k"),
        ([{"question": "q", "answer": "1"}], r"data\.jsonl:1: lacks the field 'category'"),
        (
            [{"category": "math_reasoning", "turns": ["x"]}],
            r"data\.jsonl:1: lacks the field 'question_id'",
        ),
        (
            [{"category": "math_reasoning", "question_id": 1}],
            r"data\.jsonl:1: lacks the field 'turns'",
        ),
        ([{"category": "math_reasoning", "question_id": 1, "turns": "x"}], "`turns` is no list"),
    ],
)
def test_a_file_that_is_not_spec_benchs_is_said(write, rows, said):
    with pytest.raises(BenchError, match=said):
        load(load_card("gsm8k"), f"spec-bench={write(rows)}", None)


# the hub


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
    """A double of `datasets.load_dataset`: `hub["rows"]` is what it returns, `hub["asked"]` what it was asked."""
    seen = {"rows": [], "asked": []}

    def load_dataset(*args, **kwargs):
        seen["asked"].append((args, kwargs))
        return seen["rows"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return seen


@pytest.mark.parametrize("name", ON_HUB)
def test_the_hub_gives_80_rows_by_lowest_hash(hub, name):
    card = load_card(name)
    hub["rows"] = [HUB_ROWS[name](i) for i in range(100)]
    data = load(card, "hub", None)
    where = {"split": card.test_split, "revision": card.revision}
    assert hub["asked"] == [((card.dataset_path, card.dataset_name), where)]
    hashes = [hashlib.sha256(q.turns[0].encode()).hexdigest() for q in data.questions]
    hub["rows"] = hub["rows"][::-1]
    assert load(card, "hub", None) == data
    assert len(data.questions) == len({q.id for q in data.questions}) == 80
    assert hashes == sorted(hashes)
    everything = [task._from_doc(card, row, "").turns[0] for row in hub["rows"]]
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
def test_a_failing_hub_is_an_error_and_never_something_else(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(BenchError, match=r"cannot load openai/gsm8k@\w{7} from the hub") as caught:
        load(load_card("gsm8k"), "hub", None)
    assert "\n" not in caught.value.message
    assert "--data bundled" in caught.value.hint


def test_rag_says_that_it_has_no_hub_data(hub):
    with pytest.raises(BenchError, match="'rag' has no data set on the hub"):
        load(load_card("rag"), "hub", None)
    assert not hub["asked"]


class Api:
    """A double of the hub's API that answers, or does not."""

    asked, error = [], None

    def dataset_info(self, name, *, timeout):
        self.asked.append(timeout)
        if self.error:
            raise self.error


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(Api, "asked", [])


def cards(*names):
    return [load_card(name) for name in names]


def test_auto_is_the_hub_where_it_answers(online):
    assert resolve_source("auto", cards("gsm8k", "rag", "nq")) == {
        "gsm8k": "hub",
        "rag": "bundled",
        "nq": "hub",
    }
    assert len(Api.asked) == 1
    assert 0 < Api.asked[0] <= 5


def test_auto_is_bundled_where_it_does_not(online, monkeypatch):
    monkeypatch.setattr(Api, "error", TimeoutError("too slow"))
    assert resolve_source("auto", cards("gsm8k", "rag")) == {"gsm8k": "bundled", "rag": "bundled"}


def test_auto_is_bundled_in_offline_mode_and_asks_nobody(online, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve_source("auto", cards("gsm8k")) == {"gsm8k": "bundled"}
    assert not Api.asked


@pytest.mark.parametrize("wanted", ["hub", "bundled", "spec-bench=x", "mine.jsonl"])
def test_what_was_named_is_taken(online, wanted):
    assert resolve_source(wanted, cards("gsm8k", "rag")) == {"gsm8k": wanted, "rag": wanted}
    assert not Api.asked
