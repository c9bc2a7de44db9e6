"""A served engine that answers otherwise in company, or at another draft depth, is told."""

import json
from dataclasses import replace

import pytest

from fspad_bench.cli.main import main
from fspad_bench.models import tokenizers
from fspad_bench.serving import invariance, openai
from fspad_bench.serving.double.server import serving
from fspad_bench.serving.double.service import Direct, Double, Settings
from fspad_bench.serving.double.target import OwnTarget
from fspad_bench.serving.invariance import ask_in_company, kept, render

PROMPTS = [(1, 2, 3), (4, 5), (6,)]
SHALLOW = {"depth 1": {"num_speculative_tokens": 1}}


class Crowded(Direct):
    """An engine whose answers change from four requests at once on: at the third token."""

    def ask_all(self, asks, concurrency):
        replies = super().ask_all(asks, concurrency)
        if concurrency < 4:
            return replies
        return [replace(r, tokens=(*r.tokens[:2], 99, *r.tokens[3:])) for r in replies]


def served(engine=Direct, **settings):
    return engine(Double(Settings(end=-9.0, **settings)))


def by_way(engine, **options):
    findings = ask_in_company(engine, PROMPTS, concurrencies=(2, 4), max_tokens=12, **options)
    return {finding.way: finding for finding in findings}


def test_a_right_engine_answers_the_same_in_every_way():
    findings = by_way(served(), others=SHALLOW)
    assert list(findings) == ["alone, again", "2 at once", "4 at once", "depth 1"]
    assert kept(list(findings.values()))
    assert all(finding.gap == 0 for finding in findings.values())
    assert findings["4 at once"].prompts == 4
    assert findings["depth 1"].drafted < findings["alone, again"].drafted


def test_an_engine_that_changes_in_company_is_told_with_the_first_token():
    findings = by_way(served(Crowded))
    assert findings["2 at once"].same
    crowd = findings["4 at once"]
    assert (crowd.different, crowd.first) == (4, 2)
    assert not kept(list(findings.values()))
    assert "4 at once" in render(list(findings.values()))


def test_an_engine_that_is_wrong_at_one_depth_is_told():
    engine = served(fault="short-rollback", fault_depth=3, noise=6.0)
    findings = by_way(engine, others={"depth 3": {"num_speculative_tokens": 3}})
    assert findings["2 at once"].same
    assert findings["depth 3"].different


def test_other_log_probabilities_of_the_same_tokens_are_told():
    class Rounded(Direct):
        def ask_all(self, asks, concurrency):
            replies = super().ask_all(asks, concurrency)
            shift = 1e-3 * (concurrency > 1)
            return [replace(r, chosen=tuple(x + shift for x in r.chosen)) for r in replies]

    crowd = by_way(served(Rounded))["2 at once"]
    assert crowd.different == 0
    assert crowd.gap == pytest.approx(1e-3)
    assert not crowd.same


def test_text_is_compared_where_a_server_tells_no_tokens():
    class Mute(Direct):
        def ask_all(self, asks, concurrency):
            replies = super().ask_all(asks, concurrency)
            text = f"{concurrency > 3}"
            return [
                replace(r, tokens=(), chosen=None, tokens_known=False, text=text) for r in replies
            ]

    findings = by_way(served(Mute))
    assert findings["2 at once"].same
    assert (findings["4 at once"].different, findings["4 at once"].first) == (4, None)


@pytest.fixture
def at_the_url(monkeypatch):
    """Put a double behind every address; the prompts are of its tokens."""

    class Tokenizer:
        decode = str

        def encode(self, text):
            return [len(text) % 20 + 1, 3]

    monkeypatch.setattr(tokenizers, "load_tokenizer", lambda name: Tokenizer())

    def at_the_url(engine):
        monkeypatch.setattr(openai, "OpenAIEngine", lambda url, **_: engine)

    return at_the_url


def test_the_verb_asks_the_engine_and_tells_its_verdict(at_the_url, capsys):
    words = "invariance --served http://here --max-new-tokens 6 --limit 2 --concurrency 2,4".split()
    at_the_url(served())
    assert main([*words, "--depths", "2,3"]) == 0
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == ["alone, again", "2 at once", "4 at once", "depth 2", "depth 3"]
    at_the_url(served(Crowded))
    assert main([*words, "--format", "json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] is False
    assert [finding["same"] for finding in told["findings"]] == [True, True, False]
    assert told["served"]["model"] == "double"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--depths 2 --depth-extra nonsense", "is not a JSON object in which N is a value"),
        ("--depths 2 --depth-extra [N]", "is not a JSON object in which N is a value"),
        ('--depths 2 --depth-extra {"NONE":1}', "is not a JSON object in which N is a value"),
        ("--depths 0", "'0' is not a whole number above 0"),
        ("--target tinny", "unknown target 'tinny'"),
        ("--target random:tiny", "has no tokenizer"),
        ("--target tiny --served http://127.0.0.1:9", "127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_clear_error(words, error, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    served = ["--served", "http://127.0.0.1:9"]
    assert main(["invariance", *served, *words.split()]) == 2
    assert error in capsys.readouterr().err


def test_it_asks_over_http(tiny, capsys):
    words = "--target tiny --limit 2 --concurrency 2 --max-new-tokens 6 --format json".split()
    with serving(OwnTarget(tiny)) as url:
        assert main(["invariance", "--served", url, *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] is True
    assert [(f["way"], f["prompts"]) for f in told["findings"]] == [
        ("alone, again", 2),
        ("2 at once", 2),
    ]


def test_concurrencies_are_those_that_the_verb_names():
    assert invariance.CONCURRENCIES == (2, 4, 8, 16)
