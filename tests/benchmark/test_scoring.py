"""Every metric against values worked out by hand, and the ways in which real outputs are untidy."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from by_hand import KEY, records, sample

from fspad_bench.benchmark.scored import scores
from fspad_bench.benchmark.scoring import METRICS, score
from fspad_bench.benchmark.tasks import Question, TaskData, load_card
from fspad_bench.util.errors import BenchError


def accuracy(output: str, *answers: str) -> float:
    return score("last_number", [output], [answers])["accuracy"]


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("So she has 3 + 4 = 7 apples.", "7"),
        ("The total is $1,234.50", "1234.5"),
        ("It costs 70,000.", "70000"),
        ("He saves 25%.", "25"),
        ("The answer is 4.0", "4"),
        ("The answer is 4", "4.00"),
        ("**$18**", "18"),
        (r"\boxed{-5}", "-5"),
        ("a loss of -$3", "-3"),
        ("a loss of $-3", "-3"),
        ("a loss of \u22123", "-3"),
        ("x=-3", "-3"),
        ("10-3", "3"),
        ("between 5%-10%", "10"),
        ("the answer--12", "12"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("about .5", "0.5"),
        ("0.25.", "0.25"),
        ("version 1.2.3", "3"),
        ("-0", "0"),
        ("007", "7"),
        ("She eats 2 of 9.\n#### 42", "42"),
        ("42", "She eats 2 and buys 1,000 more.\n#### 42"),
        ("1000000", "so <<10*100000=1000000>>\n#### 1,000,000"),
    ],
)
def test_the_last_number_counts_by_value(output, answer):
    assert accuracy(output, answer) == 100


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("7, which is more than 3", "7"),
        ("-3", "3"),
        ("3", "-3"),
        ("1,234", "234"),
        ("4.01", "4"),
        ("42", "4"),
        ("no idea", "0"),
        ("", "0"),
        ("x²", "2"),
        # beyond the 28 digits to which decimal arithmetic rounds
        ("-" + "1" * 30, "-" + "1" * 29 + "2"),
    ],
)
def test_another_number_or_none_is_wrong(output, answer):
    assert accuracy(output, answer) == 0


def test_any_accepted_number_will_do_and_samples_are_averaged():
    figures = score("last_number", ["5", "6", "seven", "8"], [["4", "5"], ["6"], ["7"], ["9"]])
    assert figures == {"accuracy": 50.0}


def test_a_reference_without_a_number_is_an_error_of_the_data():
    with pytest.raises(ValueError, match="no number in the reference 'many'"):
        accuracy("5", "5", "many")


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples and 1 of 3 quadruples; lengths equal, no penalty.
    figures = score("bleu", ["the cat sat on the mat"], [["the cat sat on a mat"]])
    assert figures["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert list(figures) == ["bleu", "chrf"]


def test_chrf_by_hand():
    # Letters: 3 of 4, 2 of 3, 1 of 2, 0 of 1. Precision and recall agree, so beta does not matter;
    # sacrebleu averages over the orders that occur.
    figures = score("bleu", ["abcd"], [["abcx"]])
    assert figures["chrf"] == pytest.approx(100 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)


def test_bleu_is_of_the_corpus_not_a_mean_of_sentences():
    outputs = ["one two three four", "one two three four five six seven eight"]
    references = [["nine ten eleven twelve"], [outputs[1]]]
    # Counts pooled over both: 8/12, 7/10, 6/8, 5/6. The mean of sentences would be about 50.
    expected = 100 * (8 / 12 * 7 / 10 * 6 / 8 * 5 / 6) ** 0.25
    assert score("bleu", outputs, references)["bleu"] == pytest.approx(expected)


def test_samples_may_have_different_numbers_of_references():
    outputs = ["a small dog runs fast", "the old cat sleeps here"]
    ragged = score("bleu", outputs, [["something else", outputs[0]], [outputs[1]]])
    assert ragged == {"bleu": pytest.approx(100), "chrf": pytest.approx(100)}
    poor = score("bleu", outputs, [["a small dog"], ["the old cat sleeps now", outputs[0]]])
    again = [["a small dog"] * 3, ["the old cat sleeps now", outputs[0]]]
    assert poor == score("bleu", outputs, again)
    assert 0 < poor["bleu"] < 100


def test_rouge_by_hand():
    # Stems police/kill/gunman against police/end/gunman: 2 of 3 in order.
    figures = score("rouge_l", ["police killed gunmen"], [["police kill the gunmen"]])
    assert figures == {"rouge_l": pytest.approx(100 * 2 * (3 / 3) * (3 / 4) / (3 / 3 + 3 / 4))}


def test_rouge_reads_a_newline_as_the_end_of_a_sentence():
    swapped = "the dog ran\na cat slept"
    assert score("rouge_l", [swapped], [["a cat slept\nthe dog ran"]])["rouge_l"] == 100
    assert score("rouge_l", [swapped], [["a cat slept the dog ran"]])["rouge_l"] == 100
    one_line = swapped.replace("\n", " ")
    assert score("rouge_l", [one_line], [["a cat slept the dog ran"]])["rouge_l"] == 50


def test_rouge_takes_the_best_reference_and_the_mean_over_samples():
    figures = score("rouge_l", ["red fox", "", "red fox"], [["blue", "red fox"], ["x"], ["y"]])
    assert figures["rouge_l"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("output", "answers", "em", "f1"),
    [
        ("The  Eiffel Tower!", ["eiffel tower"], 100, 100),
        ("It is the Eiffel Tower", ["Eiffel Tower"], 0, 100 * 2 * 2 / (4 + 2)),
        ("Tower", ["London Bridge", "the Eiffel Tower"], 0, 100 * 2 * 1 / (1 + 2)),
        ("London", ["Paris", "london."], 100, 100),
        ("U.S.", ["us"], 100, 100),
        ("a cat", ["cat, the"], 100, 100),
        ("anthem", ["them"], 0, 0),
        ("no no no", ["no"], 0, 100 * 2 * 1 / (3 + 1)),
        ("no no", ["no no yes"], 0, 100 * 2 * 2 / (2 + 3)),
        ("", ["Paris"], 0, 0),
        ("The", ["the."], 100, 100),
    ],
)
def test_exact_match_and_f1(output, answers, em, f1):
    figures = score("exact_match", [output], [answers])
    assert figures == {"em": em, "f1": pytest.approx(f1)}


def test_exact_match_averages_over_samples():
    figures = score("exact_match", ["red", "blue sky", "x"], [["red"], ["blue"], ["y"]])
    assert figures == {"em": pytest.approx(100 / 3), "f1": pytest.approx((100 + 200 / 3) / 3)}


@pytest.mark.parametrize(
    ("output", "answer", "accuracy"),
    [
        (r"so it is \boxed{7}.", "7", 100),
        (r"first \boxed{3}, no: \boxed{ 7 }", "7", 100),
        (r"\boxed{7}, or rather \boxed{3}", "7", 0),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", 100),
        (r"$\boxed{\left( 3, \, \frac{\pi}{2} \right)}$", r"\left(3,\frac{\pi}{2}\right)", 100),
        (r"\boxed{\leftarrow}", "arrow", 0),
        (r"\boxed{7", "7", 0),
        ("7", "7", 0),
        ("", "7", 0),
    ],
)
def test_the_last_box_holds_the_answer(output, answer, accuracy):
    assert score("boxed", [output], [[answer]]) == {"accuracy": accuracy}


HEADLINES = {
    "last_number": "accuracy",
    "boxed": "accuracy",
    "bleu": "bleu",
    "rouge_l": "rouge_l",
    "exact_match": "em",
}


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_runs_from_0_to_100_and_leads_with_its_headline(metric):
    answers = ["there are 12 red birds in 7 trees", "all 5 of the boats sank by day 3"]
    said = [rf"\boxed{{{answer}}}" for answer in answers] if metric == "boxed" else answers
    right = score(metric, said, [[answer] for answer in answers])
    wrong = score(metric, ["@", ""], [[answer] for answer in answers])
    assert next(iter(right)) == next(iter(wrong)) == HEADLINES[metric]
    assert list(right.values()) == [pytest.approx(100)] * len(right)
    assert list(wrong.values()) == [0] * len(wrong)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("outputs", "references", "message"),
    [
        ([], [], "no outputs"),
        (["1", "2"], [["1"]], "2 outputs but 1"),
        (["1", "2"], [["1"], []], r"references\[1\]"),
        (["12"], ["12"], r"references\[0\]"),
    ],
)
def test_malformed_input_is_refused(metric, outputs, references, message):
    with pytest.raises(ValueError, match=message):
        score(metric, outputs, references)


def test_an_unknown_metric_names_its_neighbour():
    with pytest.raises(BenchError, match="unknown metric 'blue'") as caught:
        score("blue", ["x"], [["x"]])
    assert "bleu" in caught.value.hint


def test_a_score_says_how_many_prompts_it_is_of():
    """Of those that have answers, whose last turn did not fail."""
    turns = {"a": 1, "b": 2, "c": 2, "d": 1}
    answers = {"a": ["7"], "b": ["7"], "c": ["7"], "d": []}
    questions = [Question(name, ["?"] * count, answers[name]) for name, count in turns.items()]
    data = TaskData(load_card("gsm8k"), "bundled", "", questions)
    samples = [
        replace(sample(KEY, name, 3, 1.0, turn=turn), error="failed" * ((name, turn) == ("c", 1)))
        for name, count in turns.items()
        for turn in range(count)
    ]
    (score,) = scores(data, records(*samples, keys=[KEY]), lambda tokens: "it is 7")
    assert (score.scores, score.scored) == ({"accuracy": 100.0}, 2)


def test_importing_the_metrics_imports_no_library():
    code = (
        "import sys, fspad_bench.benchmark.scoring; "
        "print(sorted({'torch', 'numpy', 'sacrebleu', 'rouge_score', 'nltk'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
