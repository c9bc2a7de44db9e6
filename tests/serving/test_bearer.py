"""The bearer token is sent, and hidden from every text however the text writes it."""

import base64
import json
import traceback
from urllib.parse import quote

import pytest

from fspad_bench.serving.bearer import Bearer, token_from_env
from fspad_bench.util.errors import BenchError

SECRET = "sk/very\\'\"secret"
FORMS = {
    "plain": SECRET,
    "repr": repr(f"Bearer {SECRET}".encode()).removeprefix("b'Bearer ")[:-1],
    "json": json.dumps(SECRET)[1:-1],
    "json in json": json.dumps(json.dumps(SECRET))[3:-3],
    "address": quote(SECRET, safe=""),
    "path": quote(SECRET),
    "upper case": SECRET.upper(),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "hex": SECRET.encode().hex(),
}


def test_a_token_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("FSPAD_BENCH_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert token_from_env() is None
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    assert token_from_env() == "second"
    monkeypatch.setenv("FSPAD_BENCH_API_KEY", "first")
    assert token_from_env() == "first"
    monkeypatch.setenv("FSPAD_BENCH_API_KEY", " \n")
    assert token_from_env() == "second"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_token_is_hidden_however_it_is_written(form):
    bearer = Bearer(SECRET)
    assert bearer.hide(f"<{form}>") in ("<***>", "<***=>", "<***==>")
    assert "very" not in repr(bearer)


@pytest.mark.parametrize("before", ["Bearer ", "me:", "Bearer", "x"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_the_token_is_hidden_inside_of_base64(before, encode):
    written = encode(f"{before}{SECRET}, more".encode()).decode()
    hidden = Bearer(SECRET).hide(written)
    assert hidden.count("***") == 1
    assert len(hidden) < len(written) - len(SECRET)


def test_other_texts_stay_as_they_are():
    assert Bearer(SECRET).hide("sk/very") == "sk/very"
    assert Bearer(None).hide("") == ""
    assert Bearer(" \n").headers == Bearer(None).headers == {}


def test_space_around_a_token_is_no_part_of_it():
    assert Bearer(f" {SECRET}\n").headers == {"Authorization": f"Bearer {SECRET}"}


@pytest.mark.parametrize("end", ["\nX: y", "\x00", "\x7f.", "\u00e9", "\ud800"])
def test_a_token_that_no_header_can_hold_is_refused_without_it(end):
    with pytest.raises(BenchError, match="cannot be sent") as caught:
        Bearer(SECRET + end)
    assert "very" not in "".join(traceback.format_exception(caught.value)) + caught.value.hint
