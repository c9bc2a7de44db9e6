"""lm-eval, both ways: decoders as its models, its tasks in a run.

lm-eval takes seconds to import, so nothing here does while tests are collected.
"""

from __future__ import annotations

import importlib.util
import json
import re
from types import SimpleNamespace

import pytest

from fspad_bench.benchmark import lm_eval_tasks
from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.prompts import PlainPrompts, Prompts, prompts_of
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.runner import Runner
from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.penalties import Penalties
from fspad_bench.errors import BenchError
from fspad_bench.integrations import lm_eval as door
from fspad_bench.models.load import load_target
from fspad_bench.models.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra"
)

LENGTH = 24
SHOWN = [
    {"question": f"Ann has {i} pens and buys 3. How many?", "answer": f"{i} + 3.\n#### {i + 3}"}
    for i in range(2, 9)
]
ASKED = [f"Tom has {i} eggs and eats {i % 3}. How many are left?" for i in (7, 12, 30, 41)]


@pytest.fixture(scope="module")
def harness():
    """lm-eval with our model registered, and what the tests need of it."""
    door.register()
    import lm_eval.tasks
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    def request(context, given=None, kind="generate_until", number=0):
        arguments = (context,) if given is None else (context, given)
        return Instance(kind, {}, arguments, 0, ("t", number, 1))

    return SimpleNamespace(
        evaluate=lm_eval.evaluate,
        TaskManager=lm_eval.tasks.TaskManager,
        HFLM=HFLM,
        Model=get_model(door.MODEL),
        get_model=get_model,
        request=request,
    )


@pytest.fixture(scope="module")
def target():
    return load_target("tiny", dtype="float32")


@pytest.fixture(scope="module")
def hf(harness):
    return harness.HFLM(pretrained=tiny_model().float(), tokenizer=tiny_tokenizer(), batch_size=1)


@pytest.fixture(scope="module")
def fspad(harness, target, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "generations.jsonl"
    return harness.Model(target, "fspad", log=str(log), **{"fspad.depth": 3})


@pytest.fixture(scope="module")
def vanilla(harness, target):
    return harness.Model(target, "vanilla")


@pytest.fixture(scope="module")
def gsm8k(harness, hf, tmp_path_factory):
    """lm-eval's gsm8k on local data, of which the target answers some rightly."""
    folder = tmp_path_factory.mktemp("gsm8k")
    answers = ["#### 1"] * len(ASKED)
    write_task(folder, answers)
    said = [texts[-1] for texts in answered(harness, hf, folder / "mine.yaml")[1]]
    numbers = [re.findall(r"-?[0-9.,$]{2,}|-?[0-9]+", text) for text in said]
    for i in (0, 2):
        answers[i] = f"#### {numbers[i][-1].strip('.')}"
    write_task(folder, answers)
    return folder / "mine.yaml"


def write_task(folder, answers, **changes):
    rows = [{"question": q, "answer": a} for q, a in zip(ASKED, answers, strict=True)]
    for name, content in (("train", SHOWN), ("test", rows)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    import lm_eval.tasks
    import yaml

    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    card = {
        "include": lm_eval.tasks.__path__[0] + "/gsm8k/gsm8k.yaml",
        "task": "gsm8k_mine",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": files,
            "cache_dir": str(folder / "cache" / answers[0][5:]),
        },
        "num_fewshot": 1,
        "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": LENGTH},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(card | changes))
    return folder / "mine.yaml"


def answered(harness, model, path, **given):
    """The results of a task, and of each sample the response and what filters made of it."""
    loaded = harness.TaskManager(include_defaults=False).load([str(path)])
    (task,) = loaded["tasks"].values()
    task.set_fewshot_seed(1234)  # as `simple_evaluate` does; examples are drawn at random
    if given:
        task.set_config(key="generation_kwargs", value=given, update=True)
    made = harness.evaluate(model, loaded, bootstrap_iters=0)
    samples = made["samples"]["gsm8k_mine"]
    return made["results"]["gsm8k_mine"], [
        (sample["filter"], *sample["filtered_resps"], *sample["resps"][0]) for sample in samples
    ]


class TestDecodersAsModels:
    def test_ours_joins_the_names_of_lm_eval(self, harness):
        assert harness.get_model("hf") is harness.HFLM
        assert harness.Model.__name__ == "DecoderLM"

    def test_gsm8k_is_answered_as_hf_does_and_scores_the_same(self, harness, fspad, hf, gsm8k):
        results, samples = answered(harness, fspad, gsm8k)
        expected, theirs = answered(harness, hf, gsm8k)
        assert samples == theirs
        assert results == expected
        assert results["exact_match,flexible-extract"] == 0.5
        (first, *_) = fspad.generations
        assert first.task == "gsm8k_mine"
        assert first.tokens_per_step > 1
        logged = [json.loads(line) for line in fspad.log.read_text().splitlines()]
        assert [line["doc_id"] for line in logged[:4]] == [0, 1, 2, 3]
        assert logged[0]["tokens"] == LENGTH
        assert fspad.get_model_info()["decoding"]["generations"] == len(fspad.generations)
        assert fspad.get_model_info()["decoder_options"]["depth"] == 3

    def test_sampled_text_is_the_same_for_every_decoder(self, harness, fspad, vanilla, gsm8k):
        sampled = {"do_sample": True, "temperature": 0.9, "top_p": 0.9}
        first = answered(harness, fspad, gsm8k, **sampled)
        assert first == answered(harness, vanilla, gsm8k, **sampled)
        assert first[1] != answered(harness, vanilla, gsm8k)[1]
        other = harness.Model(vanilla.target, "vanilla", seed=5)
        assert first[1] != answered(harness, other, gsm8k, **sampled)[1]

    def test_equal_requests_are_sampled_apart(self, harness, vanilla):
        sampled = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
        one, two = vanilla.generate_until([harness.request("Hm.", sampled)] * 2)
        assert one != two
        assert [line.repeat for line in vanilla.generations[-2:]] == [0, 1]

    def test_sampling_cuts_as_hf_does_unless_told_otherwise(self, vanilla):
        def sampler(**settings):
            return vanilla._sampler({"do_sample": True, "temperature": 0.5, **settings}, 3, "s")

        assert sampler() == Sampler(0.5, 50, 1.0, 3, "s")
        assert sampler(top_k=0, top_p=0.8) == Sampler(0.5, 0, 0.8, 3, "s")
        assert sampler(do_sample=False) == Sampler(stream="s")

    @pytest.mark.parametrize("start", [0, 1, 9])
    @pytest.mark.parametrize("length", [1, 4])
    def test_a_stop_string_ends_the_text_to_the_character(self, harness, fspad, hf, start, length):
        given = {"until": [], "max_gen_toks": 40}
        (whole,) = fspad.generate_until([harness.request("Count: ", given)], disable_tqdm=True)
        string = whole[start : start + length]  # tokens are characters
        given = {"until": ["never", string], "max_gen_toks": 40}
        asked = [harness.request("Count: ", given)]
        (text,) = fspad.generate_until(asked, disable_tqdm=True)
        assert text == whole[: whole.index(string)] == hf.generate_until(asked, True)[0]
        assert fspad.generations[-1].tokens == len(text) + length

    @pytest.mark.parametrize("place", [3, None])
    def test_thinking_may_end_with_a_token_as_for_hf(self, harness, target, place):
        (whole,) = harness.Model(target, "vanilla").generate_until(
            [harness.request("Count: ", {"max_gen_toks": 12})], disable_tqdm=True
        )
        token = 95 if place is None else target.tokenizer(whole[place])["input_ids"][-1]
        given = {"think_end_token": str(token)}
        hf = harness.HFLM(
            pretrained=tiny_model().float(), tokenizer=tiny_tokenizer(), batch_size=1, **given
        )
        asked = [harness.request("Count: ", {"max_gen_toks": 12})]
        model = harness.Model(target, "fspad", **given)
        texts = model.generate_until(asked, disable_tqdm=True)
        assert texts == hf.generate_until(asked, True)
        assert (len(texts[0]) < len(whole)) == (place is not None)

    def test_likelihoods_are_those_of_hf(self, harness, fspad, hf):
        (next_words,) = hf.generate_until([harness.request("One, two:", {"max_gen_toks": 5})])
        pairs = [("One, two:", next_words), ("One, two:", "three"), ("", "alone"), ("a ", "b c")]
        asked = [harness.request(*pair, kind="loglikelihood") for pair in pairs]
        ours = fspad.loglikelihood(asked, disable_tqdm=True)
        theirs = hf.loglikelihood(asked, disable_tqdm=True)
        assert [is_greedy for _, is_greedy in ours] == [True, False, False, False]
        assert [is_greedy for _, is_greedy in theirs] == [True, False, False, False]
        assert [value for value, _ in ours] == pytest.approx([v for v, _ in theirs], abs=1e-4)
        rolled = [harness.request("A text, rolled.", kind="loglikelihood_rolling")]
        assert fspad.loglikelihood_rolling(rolled, True) == pytest.approx(
            hf.loglikelihood_rolling(rolled, True), abs=1e-4
        )

    def test_chat_templates_are_the_targets(self, fspad, hf):
        chat = [{"role": "user", "content": "hi"}]
        assert fspad.apply_chat_template(chat) == hf.apply_chat_template(chat)
        assert fspad.chat_template(True) == hf.chat_template(True)

    def test_a_prompt_too_long_loses_its_beginning_as_for_hf(self, harness, target):
        model = harness.Model(target, "vanilla", max_length=30)
        asked = [harness.request("x" * 90 + "yz", {"max_gen_toks": 10})]
        short = [harness.request("x" * 18 + "yz", {"max_gen_toks": 10})]
        assert model.generate_until(asked, True) == model.generate_until(short, True)
        assert model.generations[0].prompt_tokens == 20

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "needs a target and a decoder"),
            ({"pretrained": "tiny"}, "needs a target and a decoder"),
            ({"batch_size": 4}, "batch_size=4: a decoder answers one request at a time"),
            ({"batch_size": "auto"}, "batch_size=auto: a decoder answers one"),
            ({"peft": "x"}, "no argument 'peft'"),
            ({"trust_remote_code": True}, "no argument 'trust_remote_code'"),
            ({"dtype": "int8"}, "unknown dtype 'int8'"),
            ({"decoder": "fsapd"}, "unknown decoder 'fsapd'"),
            ({"fspad.deep": 3}, "no option 'deep'"),
            ({"log": "/nowhere/at/all"}, "cannot write /nowhere/at/all"),
        ],
    )
    def test_arguments_that_it_cannot_honour_are_refused(self, harness, target, given, message):
        whole = {"pretrained": target, "decoder": "fspad"} if given and len(given) == 1 else {}
        if "pretrained" in given:
            whole = {}
        if "dtype" in given:
            given = {**given, "pretrained": "tiny"}
        with pytest.raises(BenchError, match=message):
            harness.Model(**{**whole, **given})

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"num_beams": 4}, "does not know the generation setting num_beams=4"),
            ({"typical_p": 0.9}, "does not know the generation setting typical_p=0.9"),
            ({"repetition_penalty": 0}, "repetition-penalty 0.0 is out of range"),
            ({"repetition_penalty": "much"}, "repetition_penalty='much' is no number"),
            ({"no_repeat_ngram_size": 1.5}, "no-repeat-ngram-size 1.5 is out of range"),
            ({"do_sample": True, "temperature": 1, "min_p": 2}, "min-p 2.0 is out of range"),
            ({"do_sample": True, "temperature": 1, "top_k": [5]}, r"top_k=\[5\] is no number"),
            ({"do_sample": True}, "do_sample=True at temperature 0"),
            ({"max_gen_toks": 0}, "max_gen_toks=0 is out of range"),
            ({"max_gen_toks": "many"}, "cannot be read.*'many'"),
            ({"until": 5}, "the stop string 5 is no text"),
            ({"max_gen_toks": 8192}, "max_gen_toks=8192 is out of range"),
        ],
    )
    def test_settings_that_it_cannot_honour_are_refused_first(
        self, harness, vanilla, given, message
    ):
        before = len(vanilla.generations)
        with pytest.raises(BenchError, match=message):
            vanilla.generate_until([harness.request("a", {}), harness.request("b", given)])
        assert len(vanilla.generations) == before

    def test_neutral_settings_are_no_matter(self, harness, vanilla):
        given = {"max_gen_toks": 3, "num_beams": 1, "repetition_penalty": 1.0}
        asked = [harness.request("a", given), harness.request("a", {"max_gen_toks": 3})]
        one, two = vanilla.generate_until(asked, disable_tqdm=True)
        assert one == two

    @pytest.mark.parametrize(
        "given",
        [
            {"repetition_penalty": 1.5},
            {"no_repeat_ngram_size": 2},
            {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1},
        ],
    )
    def test_penalties_are_those_of_hf(self, harness, fspad, hf, monkeypatch, given):
        plain = {"max_gen_toks": 30}
        asked = [harness.request("Count: ", plain | given)]
        (text,) = fspad.generate_until(asked, disable_tqdm=True)
        assert [text] == hf.generate_until(asked, True)
        unasked = [harness.request("Count: ", plain)]
        assert fspad.generate_until(unasked, True) != [text]
        for name, value in given.items():
            for model in (fspad.target.model, hf.model):
                monkeypatch.setattr(model.generation_config, name, value)
        assert fspad.generate_until(unasked, True) == hf.generate_until(unasked, True) == [text]

    def test_penalties_of_the_output_are_taken_from_requests(self, vanilla):
        given = {"presence_penalty": 0.5, "frequency_penalty": 0.1}
        sampler = vanilla._sampler({"do_sample": False, **given}, 3, "s")
        assert sampler == Sampler(stream="s", processors=Penalties(**given).processors)

    def test_min_p_is_a_requests_or_the_targets(self, target, vanilla, monkeypatch):
        sampled = {"do_sample": True, "temperature": 0.5}
        monkeypatch.setattr(target.model.generation_config, "min_p", 0.2)
        assert vanilla._sampler(sampled, 3, "s") == Sampler(0.5, 50, 1.0, 3, "s", 0.2)
        assert vanilla._sampler(sampled | {"min_p": 0}, 3, "s") == Sampler(0.5, 50, 1.0, 3, "s")

    def test_settings_of_the_target_that_only_hf_applies_are_named(
        self, harness, target, monkeypatch
    ):
        from fspad_bench.integrations import lm_eval_model

        told = []
        monkeypatch.setattr(
            lm_eval_model.logger, "warning", lambda text, *words: told.append(text % words)
        )
        monkeypatch.setattr(target.model.generation_config, "repetition_penalty", 1.3)
        monkeypatch.setattr(target.model.generation_config, "suppress_tokens", [5])
        harness.Model(target, "vanilla")
        (text,) = told
        assert text.endswith(" does not: {'suppress_tokens': [5]}")


class TestTasksOfARun:
    @pytest.fixture
    def run(self, quick_runs, tmp_path):
        def run(path, **plan):
            settings = {"decoders": ["vanilla", "fspad"], "target": "tiny", "limit": None}
            plan = Plan(tasks=[f"lm_eval:{path}"], **{**settings, **plan})
            return Records.read(Runner(plan, tmp_path / "out", timed=False).run())

        return run

    def test_prompts_answers_and_scores_are_lm_evals(self, harness, run, gsm8k, tiny):
        records = run(gsm8k)
        model = harness.Model(tiny, "vanilla")
        results, samples = answered(harness, model, gsm8k)
        whole = [text for name, _, text in samples if name == "strict-match"]
        for key in records.keys.values():
            assert key.task == "lm_eval:gsm8k_mine"
            assert re.fullmatch(r"lm_eval-0\.4\.\d+-v3(\.0)?", key.data_source)
            assert key.max_new_tokens == LENGTH
            rows = sorted((s for s in records.samples if s.key == key.hash), key=lambda s: s.sample)
            texts = [tiny.tokenizer.decode(s.tokens, skip_special_tokens=True) for s in rows]
            assert [text.split("Question:")[0] for text in texts] == whole
            asked = [line.prompt_tokens for line in model.generations]
            assert [s.prompt_tokens for s in rows] == asked
            scores = records.scores[key.hash]
            assert scores == {
                name: 100 * results[name]
                for name in ("exact_match,strict-match", "exact_match,flexible-extract")
            }

    def test_a_stop_string_of_the_task_ends_answers(self, run, tiny, tmp_path):
        folder = tmp_path / "task"
        folder.mkdir()
        settings = {"do_sample": False, "max_gen_toks": 60}
        answers = ["#### 1"] * len(ASKED)
        path = write_task(folder, answers, generation_kwargs={**settings, "until": ["never"]})
        whole = [sample.tokens for sample in run(path, limit=2).samples]
        string = tiny.tokenizer.decode(whole[0][7:10])
        path = write_task(folder, answers, generation_kwargs={**settings, "until": [string]})
        for sample, tokens in zip(run(path, limit=2).samples, whole, strict=True):
            text = tiny.tokenizer.decode(tokens)
            end = text.find(string)
            kept = tokens if end < 0 else tokens[: end + len(string)]
            assert sample.tokens == kept

    def test_its_own_data_are_not_swapped(self, harness, gsm8k, tmp_path):
        plan = Plan(["vanilla"], [f"lm_eval:{gsm8k}"], "tiny", data="bundled")
        with pytest.raises(BenchError, match="lm_eval:gsm8k_mine has its own data"):
            Runner(plan, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_the_card_is_known_by_what_the_task_says(self, harness, tmp_path):
        answers = ["#### 1"] * len(ASKED)

        def card(**changes):
            return lm_eval_tasks.card_of(f"lm_eval:{write_task(tmp_path, answers, **changes)}")

        first = card()
        assert first.until == ["Question:"]
        assert card().sha256 == first.sha256
        assert card(num_fewshot=0).sha256 != first.sha256
        questions = lm_eval_tasks.load(first, first.source, 2).questions
        assert [question.id for question in questions] == ["0", "2"]
        assert questions[0].turns[0].startswith("Question: Ann has ")
        again = lm_eval_tasks.load(card(num_fewshot=1), first.source, None).questions
        assert [again[0], again[2]] == questions  # whatever else is asked
        assert questions[0].turns[0].endswith(f"Question: {ASKED[0]}\nAnswer:")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"output_type": "multiple_choice"}, r"no generated text \(multiple_choice\)"),
            ({"repeats": 8}, "it asks for 8 answers to each prompt"),
            ({"unsafe_code": True}, "it runs code that the target writes"),
            ({"generation_kwargs": {"num_beams": 3}}, "generation setting num_beams=3"),
            ({"generation_kwargs": {"max_gen_toks": 0}}, "max_gen_toks=0 is out of range"),
            ({"generation_kwargs": {"max_gen_toks": "x"}}, "cannot be read.*'x'"),
            ({"generation_kwargs": {"until": ["a", None, 5]}}, "the stop string 5 is no text"),
            ({"dataset_path": "nobody/nothing", "dataset_kwargs": None}, "cannot load lm_eval:"),
            ({"doc_to_text": "{{ missing.field }}"}, "cannot load lm_eval:.*undefined"),
        ],
    )
    def test_tasks_that_have_no_place_in_a_run_are_refused(
        self, harness, tmp_path, changes, message
    ):
        path = write_task(tmp_path, ["#### 1"] * len(ASKED), **changes)
        with pytest.raises(BenchError, match=message):
            card = lm_eval_tasks.card_of(f"lm_eval:{path}")
            lm_eval_tasks.load(card, card.source, None)

    def test_empty_data_are_called_so(self, harness, tmp_path):
        (tmp_path / "test.jsonl").write_text("")
        files = {"data_files": {"test": str(tmp_path / "test.jsonl")}, "cache_dir": str(tmp_path)}
        path = tmp_path / "empty.yaml"
        path.write_text(
            json.dumps(
                {"task": "empty", "dataset_path": "json", "test_split": "test"}
                | {"dataset_kwargs": files, "output_type": "generate_until", "doc_to_text": "a"}
            )
        )
        with pytest.raises(BenchError, match="its data are empty"):
            lm_eval_tasks.card_of(f"lm_eval:{path}")

    def test_a_name_finds_the_file_of_lm_eval(self, harness, monkeypatch):
        assert lm_eval_tasks._file("gsm8k").name == "gsm8k.yaml"
        assert lm_eval_tasks._file("nosuchtask") is None
        with pytest.raises(BenchError, match=r"no such task file: gone\.yaml"):
            lm_eval_tasks.card_of("lm_eval:gone.yaml")


class TestWithout:
    """What needs no lm-eval."""

    def test_a_missing_extra_says_what_to_install(self, monkeypatch, capsys):
        real = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name)
        )
        with pytest.raises(BenchError, match="lm_eval:gsm8k needs lm-eval") as error:
            lm_eval_tasks.card_of("lm_eval:gsm8k")
        assert error.value.hint == "pip install 'fspad-bench[lm-eval]'"
        assert door.main() == 2
        assert "pip install 'fspad-bench[lm-eval]'" in capsys.readouterr().err

    def test_plain_prompts_need_no_chat_template(self, tiny):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = None
        bare = SimpleNamespace(tokenizer=tokenizer)
        plain = SimpleNamespace(is_chat=False, until=["a"])
        prompts = prompts_of(bare, "bare", [plain])
        assert isinstance(prompts, PlainPrompts)
        assert prompts.ask("hi!") == tokenizer("hi!")["input_ids"]
        assert prompts.template_sha256 == ""
        assert prompts.stop(plain).strings == ("a",)
        with pytest.raises(BenchError, match="no chat template"):
            prompts_of(bare, "bare", [plain, SimpleNamespace(is_chat=True)])
        assert Prompts(tiny, "tiny").of(plain).ask("hi!") == prompts.ask("hi!")
