"""Sources of samples, the number that is taken, and files that cannot be used."""

import json
import re

import pytest

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.tasks import load, load_card
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import data_folder

CARDS = sorted(data_folder("tasks").rglob("*.yaml"))
NAMES = [path.stem for path in CARDS]


# limits and hashes


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


def test_the_hash_is_of_exactly_these_questions(twenty, write):
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
    assert tasks._label(source) == expected


# a file of the user's


@pytest.mark.parametrize("name", ["hub", "bundled", "spec-bench", "auto"])
def test_a_file_does_not_pass_for_the_data_of_its_name(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text('{"question": "What is 2 + 2?", "answer": "#### 4"}\n')
    monkeypatch.chdir(tmp_path)
    assert load(load_card("gsm8k"), f"./{name}", None).source == f"./{name}"


def test_documents_go_through_the_cards_template(write):
    path = write([{"question": "who are you", "answer": ["me", "I"]}])
    (question,) = load(load_card("nq"), str(path), None).questions
    assert (question.turns, question.answers) == (["Who are you?"], ["me", "I"])
    assert re.fullmatch("[0-9a-f]{12}", question.id)


def test_turns_are_not_rendered(write):
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


def test_a_line_may_hold_any_character(write):
    text = "a\u2028b\x85c\x0bd 🦆 self"
    path = write([{"question": text, "answer": "1", "self": 1, "loop": 2}])
    assert load(load_card("gsm8k"), str(path), None).questions[0].turns == [text]


def test_blank_lines_and_a_byte_order_mark_are_skipped(write):
    path = write(["", '{"question": "q", "answer": "1"}', "  ", ""])
    assert len(load(load_card("gsm8k"), str(path), None).questions) == 1
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "q", "answer": "1"}\r\n')
    assert len(load(load_card("gsm8k"), str(path), None).questions) == 1


def test_squads_answers_are_those_of_its_text(write):
    squad = {"text": ["four", "4"], "answer_start": [0, 7]}
    path = write([{"turns": ["q"], "answers": squad}, {"question": "p", "answer": squad}])
    questions = load(load_card("gsm8k"), str(path), None).questions
    assert [question.answers for question in questions] == [["four", "4"], ["four", "4"]]


GOOD = {"question": "q", "answer": "1"}
HALF = '{"id": "x", "turns": ["Cut off here \\ud83d"]}'


@pytest.mark.parametrize(
    ("name", "rows", "message"),
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
        ("gsm8k", [{"turns": "not a list"}], r"data\.jsonl:1: `turns` is not a list"),
        ("gsm8k", [{"turns": []}], r"data\.jsonl:1: `turns` is not a list"),
        ("gsm8k", [{"turns": ["a", 5]}], r"data\.jsonl:1: `turns` is not a list"),
        ("gsm8k", [{"turns": ["a", " "]}], r"data\.jsonl:1: `turns` is not a list"),
        ("gsm8k", [GOOD, GOOD | {"id": ""}], r"data\.jsonl:2: `id` is neither"),
        ("gsm8k", [GOOD | {"id": " \n"}], r"data\.jsonl:1: `id` is neither"),
        ("gsm8k", [GOOD | {"id": 1.5}], r"data\.jsonl:1: `id` is neither"),
        ("gsm8k", [GOOD | {"id": True}], r"data\.jsonl:1: `id` is neither"),
        ("gsm8k", [GOOD | {"id": ["x"]}], r"data\.jsonl:1: `id` is neither"),
        ("gsm8k", [GOOD | {"question": " "}], r"data\.jsonl:1: `turns` is not a list of texts"),
        ("gsm8k", [GOOD | {"answer": {"value": 4}}], r"data\.jsonl:1: an answer is neither"),
        ("gsm8k", [GOOD | {"answer": [["4"]]}], r"data\.jsonl:1: an answer is neither"),
        (
            "gsm8k",
            [{"turns": ["q"], "answers": {"spans": ["4"]}}],
            r"data\.jsonl:1: an answer is neither",
        ),
        ("gsm8k", [{"turns": ["q"], "answers": [True]}], r"data\.jsonl:1: an answer is neither"),
        ("gsm8k", [GOOD, HALF], r"data\.jsonl:2: half of a surrogate pair"),
        ("gsm8k", [GOOD, "[" * 100_000], r"data\.jsonl:2: not JSON"),
        ("gsm8k", [GOOD | {"id": 1}, GOOD | {"id": "1"}], "two samples of gsm8k are called '1'"),
        ("gsm8k", [GOOD | {"id": "x"}, GOOD | {"id": "x"}], "two samples of gsm8k are called 'x'"),
        ("gsm8k", [GOOD, GOOD], "two samples of gsm8k are called"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(write, name, rows, message):
    with pytest.raises(BenchError, match=message) as caught:
        load(load_card(name), str(write(rows)), None)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_binary_file_is_one_clear_error(tmp_path):
    for content in (b"\xff\x00\x80", b"\xff\xfe\x00\x80", json.dumps(GOOD).encode("utf-16")):
        (tmp_path / "data.jsonl").write_bytes(content)
        with pytest.raises(BenchError, match=r"data\.jsonl:1: not (JSON: not )?UTF-8"):
            load(load_card("gsm8k"), str(tmp_path / "data.jsonl"), None)


@pytest.mark.parametrize(
    "source", ["gone.jsonl", "spec-bench=gone.jsonl", "~nobody-here/x.jsonl", "spec-bench="]
)
def test_a_missing_file_is_one_clear_error(source):
    with pytest.raises(BenchError, match="no such data file"):
        load(load_card("gsm8k"), source, None)


@pytest.mark.parametrize("source", ["bundeld", "spec_bench=x.jsonl", "huh=1"])
def test_an_unknown_source_is_one_clear_error(source):
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


MATH = {"category": "math_reasoning", "question_id": 1, "turns": ["x"]}


@pytest.mark.parametrize(
    ("reference", "answers"),
    [(4, ["4"]), ("four", ["four"]), ([], []), (None, []), ([4, 5], ["4"])],
)
def test_a_reference_comes_in_several_shapes(write, reference, answers):
    source = f"spec-bench={write([MATH | {'reference': reference}])}"
    assert load(load_card("gsm8k"), source, None).questions[0].answers == answers


@pytest.mark.parametrize(
    ("rows", "message"),
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
        ([{"category": "math_reasoning", "question_id": 1, "turns": "x"}], "`turns` is not a list"),
        ([MATH | {"reference": {"a": "4"}}], r"data\.jsonl:1: an answer is neither"),
        ([MATH | {"reference": [[["4"]]]}], r"data\.jsonl:1: an answer is neither"),
        ([MATH | {"question_id": None}], r"data\.jsonl:1: `question_id` is neither"),
        ([MATH | {"question_id": ""}], r"data\.jsonl:1: `question_id` is neither"),
        (
            [MATH, '{"category": "math_reasoning", "turns": ["\\udfff"], "question_id": 2}'],
            r"data\.jsonl:2: half of a surrogate pair",
        ),
    ],
)
def test_a_file_that_is_not_spec_benchs_is_one_clear_error(write, rows, message):
    with pytest.raises(BenchError, match=message):
        load(load_card("gsm8k"), f"spec-bench={write(rows)}", None)
