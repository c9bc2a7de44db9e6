"""`certify --served`: exit codes, the report, and one clear error for bad input."""

import json

import pytest

from fspad_bench.cli.certify_served import sampling_of
from fspad_bench.cli.main import main
from fspad_bench.serving.double.server import serving
from fspad_bench.serving.double.service import Double, Settings

OFF = ("--plain-extra", '{"speculative": false}')
DEPTH = ("--depths", "5", "--depth-extra", '{"num_speculative_tokens": N}')
SMALL = ("--sampling", "greedy", "--max-new-tokens", "24", "--concurrency", "2")


@pytest.fixture
def certify(tmp_path, monkeypatch):
    """Return a function that runs the verb in an empty folder with two prompts in token ids."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"tokens": [3, 5]}\n{"tokens": [11, 5]}\n')
    return lambda *words: main(["certify", *words])


def test_a_right_server_is_certified_and_its_answers_are_kept(certify, capsys, tmp_path):
    with serving(Double()) as url:
        assert certify("--served", url, *OFF, *DEPTH, *SMALL, "--prompts", "p.jsonl") == 0
    out = capsys.readouterr().out
    columns = "served engine drafts greedy identity plain repeats itself"
    served, plain, _, head = out.splitlines()[:4]
    assert served.startswith("served: ")
    assert plain.startswith("plain: ")
    assert served.endswith(f", {url}")
    assert head.split() == columns.split()
    lines = (tmp_path / "certify-served.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"kind": "end", "certified": True}
    assert json.loads(lines[0])["served"]["url"] == url


def test_a_fault_is_exit_code_1_and_in_the_json(certify, capsys):
    fault = Double(Settings(fault="short-rollback"))
    with serving(fault) as served, serving(Double(Settings(depth=0))) as plain:
        words = ("--served", served, "--plain", plain, *DEPTH, *SMALL, "--prompts", "p.jsonl")
        assert certify(*words, "--format", "json") == 1
    report = json.loads(capsys.readouterr().out)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert verdicts["greedy identity"] == "FAIL"
    assert not report["certified"]


def test_another_model_is_exit_code_2(certify, capsys):
    other = Double(Settings(salt=9))
    with serving(other) as served, serving(Double(Settings(depth=0))) as plain:
        words = ("--served", served, "--plain", plain, *SMALL, "--prompts", "p.jsonl")
        assert certify(*words) == 2
    assert "do not serve the same model" in capsys.readouterr().err


def test_a_plain_side_that_speculates_is_exit_code_2(certify, capsys):
    """The switch is misspelt, so both sides make the same fault and would agree."""
    off = ("--plain-extra", '{"speculativ": false}')
    with serving(Double(Settings(fault="short-rollback", depth=5))) as url:
        assert certify("--served", url, *off, *SMALL, "--prompts", "p.jsonl") == 2
        err = capsys.readouterr().err
        assert "the plain side speculates: it drafted " in err
        assert "--plain-extra" in err
        assert certify("--served", url, *OFF, *SMALL, "--prompts", "p.jsonl") == 1  # corrected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "required: --decoder or --served, one of them"),
        (("--decoder", "vanilla", "--served", "http://x"), "--decoder or --served, one of them"),
        (("--served", "http://x"), "needs a side without speculation"),
        (("--served", "http://x", "--min-p", "0.1"), "--min-p belongs to certify --decoder"),
        (("--served", "http://x", "-D", "a.b=1"), "-D belongs to certify --decoder"),
        (("--decoder", "vanilla", "--seeded"), "--seeded belongs to certify --served"),
        (("--decoder", "vanilla", "--sampling", "greedy"), "--sampling belongs to certify --se"),
        (("--decoder", "vanilla", "--output", "x.jsonl"), "--output belongs to certify --served"),
        (("--served", "http://x", "--plain-extra", "[]"), "'[]' is not a JSON object"),
        (("--served", "http://x", "--plain", "http://x/"), "needs a side without speculation"),
        (("--served", "http://127.0.0.1:9", "--plain", "http://127.0.0.1:8"), "127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_clear_error(certify, capsys, words, message):
    assert certify(*words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_sampling_out_of_range_is_refused_before_anything_is_asked(certify, capsys):
    with serving(Double()) as url:
        words = ("--served", url, *OFF, "--prompts", "p.jsonl", "--sampling", "temperature=nan")
        assert certify(*words) == 2
    assert "temperature=nan is out of range" in capsys.readouterr().err


def test_settings_that_an_api_lacks_are_refused_before_anything_is_asked(certify, capsys, tmp_path):
    with serving(Double()) as url:
        words = ("--served", url, *OFF, "--prompts", "p.jsonl", "--dialect", "chat")
        assert certify(*words, "--sampling", "temperature=1,top_k=20") == 2
    assert "does not support top_k: its API has no such field" in capsys.readouterr().err
    assert not list(tmp_path.glob("certify-served.jsonl"))


def test_the_default_grid_leaves_out_what_an_api_lacks_and_says_so(capsys):
    class Engine:
        def __init__(self, *unsupported):
            self.unsupported = unsupported

    both = (Engine("presence", "frequency"), Engine("top_k"))
    names = [settings.name for settings in sampling_of(None, both)]
    assert names == ["greedy", "T=1", "T=0.7", "T=1 top-p=0.95", "T=1 repetition=1.3"]
    said = capsys.readouterr().err
    assert "does not support it: T=1 top-k=20, T=1 top-p=0.95 top-k=20, T=1 presence" in said
    assert said.endswith("T=1 repetition=1.3 takes their place\n")


@pytest.mark.parametrize("side", ["--served", "--plain"])
@pytest.mark.parametrize("url", ["http://me:hidden@h", "http://me:hidden@h:abc", "http://h?hidden"])
def test_an_address_with_a_secret_is_refused_and_not_shown(certify, capsys, tmp_path, side, url):
    with serving(Double()) as good:
        words = {"--served": good, "--plain": good} | {side: url}
        flags = [word for pair in words.items() for word in pair]
        assert certify(*flags, "--prompts", "p.jsonl") == 2
    printed = capsys.readouterr()
    assert "records hold addresses" in printed.err
    assert "hidden" not in printed.out + printed.err
    assert not list(tmp_path.glob("certify-served.jsonl"))


def test_prompts_need_a_tokenizer_or_token_ids(certify, capsys):
    with serving(Double()) as url:
        assert certify("--served", url, *OFF) == 2
    assert "needs prompts in token ids" in capsys.readouterr().err
