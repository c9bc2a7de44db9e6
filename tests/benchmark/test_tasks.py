"""Tasks: the cards and samples of the package."""

import hashlib
import re

import pytest

from fspad_bench.benchmark import hub, scoring, tasks
from fspad_bench.benchmark.tasks import check_names, load, load_card, read_card, read_jsonl
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import data_folder

CARDS = sorted(data_folder("tasks").rglob("*.yaml"))
NAMES = [path.stem for path in CARDS]
GSM8K = data_folder("tasks") / "gsm8k.yaml"
SIX = [name for name in NAMES if load_card(name).bundled]
ON_HUB = [path.stem for path in CARDS if read_card(path).dataset_path]


def bundled(name):
    return load(load_card(name), "bundled", None)


def raw(name):
    return [doc for _, doc in read_jsonl(load_card(name).bundled)]


# the cards


def test_spec_benchs_six_tasks_and_the_acceptance_sets_are_there():
    assert set(SIX) == {"mt_bench", "wmt", "cnn_dm", "nq", "gsm8k", "rag"}
    assert set(NAMES) - set(SIX) == {"math500", "humaneval", "mbpp", "speed_bench"}
    assert set(NAMES) <= tasks.card_names().keys()


@pytest.mark.parametrize("path", CARDS, ids=NAMES)
def test_every_card_is_whole(path):
    card = read_card(path)
    assert card.task == path.stem
    assert card.title
    assert card.license
    assert card.version >= 1
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card.max_new_tokens > 0
    assert card.doc_to_text
    assert bool(card.spec_bench) == (path.stem in SIX)
    assert bool(card.score) == bool(card.doc_to_target)
    assert card.score in ("", *scoring.METRICS)
    assert card.bundled is None or card.bundled.is_file()


@pytest.mark.parametrize("name", ON_HUB)
def test_the_hubs_data_are_pinned(name):
    card = load_card(name)
    assert re.fullmatch("[0-9a-f]{40}", card.revision)
    assert card.test_split


def test_all_but_two_have_hub_data():
    assert set(NAMES) - set(ON_HUB) == {"rag", "speed_bench"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("bundled", SIX),
        ("spec-bench=question.jsonl", SIX),
        ("hub", ON_HUB),
        ("mine.jsonl", NAMES),
    ],
)
def test_all_stands_for_the_tasks_that_a_source_has(source, names):
    assert tasks.tasks_of(source) == names


def test_all_is_resolved_with_one_question_to_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "is_reachable", lambda: asked.append(1) or True)
    assert tasks.tasks_of("auto") == [name for name in NAMES if name != "speed_bench"]
    assert asked == [1]


@pytest.mark.parametrize(
    "key", ["task", "title", "doc_to_text", "max_new_tokens", "license", "metadata"]
)
def test_a_card_that_lacks_a_key_names_it(tmp_path, key):
    lines = (data_folder("tasks") / "gsm8k.yaml").read_text().splitlines()
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(line for line in lines if not line.startswith(f"{key}:")))
    with pytest.raises(BenchError, match=f"lacks the key '{key}'"):
        read_card(path)


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list", "", "word"])
def test_a_file_that_is_no_card_is_one_clear_error(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BenchError, match=r"mine\.yaml") as caught:
        read_card(tmp_path / "mine.yaml")
    assert "\n" not in caught.value.message
    with pytest.raises(BenchError, match="No such file"):
        read_card(tmp_path / "none.yaml")


def test_a_task_is_any_card_in_a_file(tmp_path):
    card = tmp_path / "mine.yaml"
    card.write_text(
        GSM8K.read_text(encoding="utf-8").replace("task: gsm8k", "task: mine"), encoding="utf-8"
    )
    assert load_card(str(card)).task == "mine"
    with pytest.raises(BenchError, match="No such file"):
        load_card(str(tmp_path / "none.yaml"))


def test_no_other_card_takes_a_built_in_name(monkeypatch):
    claims = {"gsm8k": [registry.Claim("acme:CARD")]}
    monkeypatch.setattr(registry, "claims", lambda group: claims)
    with pytest.raises(BenchError, match="'gsm8k' is built in, and acme:CARD claims its name"):
        load_card("gsm8k")


def test_two_tasks_of_one_name_are_refused():
    cards = [load_card("gsm8k"), load_card("nq")]
    check_names(cards)
    with pytest.raises(BenchError, match="two tasks are called 'gsm8k'"):
        check_names([*cards, load_card("gsm8k")])


def test_an_unknown_task_gets_the_near_match():
    with pytest.raises(BenchError, match="unknown task 'gsm8'") as caught:
        load_card("gsm8")
    assert caught.value.hint.startswith("did you mean 'gsm8k'?")


# the bundled samples


@pytest.mark.parametrize("name", SIX)
def test_bundled_samples_render(name):
    data = bundled(name)
    assert 16 <= len(data.questions) <= 32
    assert len({q.id for q in data.questions}) == len(data.questions)
    assert len({tuple(q.turns) for q in data.questions}) == len(data.questions)
    assert data.source == "bundled"
    for question in data.questions:
        assert len(question.turns) == len(data.card.doc_to_text)
        for turn in question.turns:
            assert turn == turn.strip()
            assert "{{" not in turn
            assert not turn.endswith("None")
        assert bool(question.answers) == bool(data.card.score)


@pytest.mark.parametrize("name", [name for name in SIX if load_card(name).score])
def test_the_reference_itself_scores_100(name):
    data = bundled(name)
    answers = [question.answers for question in data.questions]
    outputs = [accepted[0] for accepted in answers]
    scores = scoring.score(data.card.score, outputs, answers)
    assert list(scores.values()) == pytest.approx([100.0] * len(scores))
    assert all(answer.strip() for accepted in answers for answer in accepted)


@pytest.mark.parametrize("name", [name for name in SIX if load_card(name).score])
def test_empty_outputs_score_0(name):
    data = bundled(name)
    scores = scoring.score(
        data.card.score, [""] * len(data.questions), [q.answers for q in data.questions]
    )
    assert next(iter(scores.values())) == 0


def test_mt_bench_has_two_turns():
    assert all(len(q.turns) == 2 for q in bundled("mt_bench").questions)


def test_gsm8k_answers_end_in_their_number():
    for doc in raw("gsm8k"):
        assert re.fullmatch(r"-?[\d,.]+", doc["answer"].rpartition("#### ")[2])


def test_gsm8k_sums_are_right():
    """Every <<sum=result>> of a worked answer holds, and the last one is the answer."""
    for doc in raw("gsm8k"):
        steps = re.findall(r"<<([-+*/(). \d]+)=([-\d.]+)>>", doc["answer"])
        assert steps, doc["id"]
        for formula, result in steps:
            assert eval(formula) == pytest.approx(float(result)), (doc["id"], formula)
        assert float(steps[-1][1]) == float(
            doc["answer"].rpartition("#### ")[2].replace(",", "")
        ), doc["id"]


def test_cnn_dm_articles_are_long():
    for doc in raw("cnn_dm"):
        assert len(doc["article"].split()) >= 350, doc["id"]
        assert 20 <= len(doc["highlights"].split()) < len(doc["article"].split()) / 3, doc["id"]


def test_rag_brings_five_passages():
    for doc in raw("rag"):
        assert len(doc["passages"]) == 5, doc["id"]
        for passage in doc["passages"]:
            assert 75 <= len(passage.split()) <= 130, doc["id"]
        text = " ".join(doc["passages"]).lower()
        assert any(answer.lower() in text for answer in doc["answers"]), doc["id"]


def test_wmt_samples_are_pairs_of_sentences():
    for doc in raw("wmt"):
        german = doc["translation"]["de"]
        english = doc["translation"]["en"]
        assert german != english
        assert 0.5 < len(english) / len(german) < 1.6, doc["id"]


def test_nq_prompts_are_questions():
    for question in bundled("nq").questions:
        assert question.turns[0][0].isupper()
        assert question.turns[0].endswith("?")
        assert not question.turns[0].endswith("??")
