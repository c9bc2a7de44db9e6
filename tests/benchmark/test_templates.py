"""Templates of task cards: what they may read, and what the sandbox refuses."""

import pytest

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.templates import evaluate, render
from fspad_bench.cli import main as cli
from fspad_bench.util.errors import BenchError

DOC = {"question": "why", "answers": ["a", "b"], "nested": {"de": "ja"}}

ESCAPES = [
    "''.__class__",
    "''.__class__.__mro__",
    "question.__class__.__base__.__subclasses__()",
    "question['__class__']['__mro__']",
    "question | attr('__class__') | attr('__mro__')",
    "'{0.__class__.__mro__}'.format(question)",
    "cycler.__init__.__globals__['os'].system('true')",
    "lipsum.__globals__['os'].popen('true').read()",
    "self.__init__.__globals__",
    "answers.append('c')",
    "nested.update(de='nein')",
    "range(10**9)",
]


def test_fields_are_read():
    assert render("{{ question }}? {{ nested.de }}", DOC, "x:1") == "why? ja"
    assert evaluate("answers", DOC, "x:1") == ["a", "b"]
    assert evaluate("answers + [question | upper]", DOC, "x:1") == ["a", "b", "WHY"]


@pytest.mark.parametrize("expression", ESCAPES)
def test_python_is_out_of_reach_of_a_template(expression):
    with pytest.raises(BenchError, match="x:1: ") as caught:
        render("{{ " + expression + " }}", DOC, "x:1")
    assert "the task's prompt is" in caught.value.hint
    assert "\n" not in caught.value.message
    assert DOC["answers"] == ["a", "b"]
    assert DOC["nested"] == {"de": "ja"}


@pytest.mark.parametrize("expression", [e for e in ESCAPES if not e.startswith("self.")])
def test_python_is_out_of_reach_of_an_expression(expression):
    with pytest.raises(BenchError, match="x:1: ") as caught:
        evaluate(expression, DOC, "x:1")
    assert "the task's answer is" in caught.value.hint
    assert DOC["answers"] == ["a", "b"]


@pytest.mark.parametrize(
    "template", ["{{ question", "{% if %}", "{{ 1 / 0 }}", "{{ question + 1 }}"]
)
def test_a_faulty_template_is_one_clear_error(template):
    with pytest.raises(BenchError, match="x:1: "):
        render(template, DOC, "x:1")


def test_a_strangers_card_is_refused_with_exit_code_2(tmp_path, capsys):
    """The whole path is tested: from a card's file to the two lines that the user sees."""
    text = (tasks.data_folder("tasks") / "gsm8k.yaml").read_text(encoding="utf-8")
    head, _, _ = text.partition("doc_to_text:")
    _, _, tail = text.partition("doc_to_target:")
    escape = "doc_to_text: \"{{ ''.__class__.__mro__ }}\"\n"
    card = tmp_path / "stranger.yaml"
    card.write_text(f"{head}{escape}doc_to_target:{tail}", encoding="utf-8")
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "q", "answer": "1"}\n')
    output = tmp_path / "out"
    words = ["run", "--decoder", "prompt_lookup", "--target", "tiny", "--task", card]
    words += ["--data", data, "--output", output]
    assert cli.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err
    assert "data.jsonl:1: access to attribute '__class__' of 'str' is forbidden" in err
    assert not output.exists()
