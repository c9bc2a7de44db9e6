"""Generative tasks of lm-eval in a run: its prompts, stop strings, filters and metrics."""

from __future__ import annotations

import importlib.util
import json
import re
from types import SimpleNamespace

import pytest
from harness import ASKED, LENGTH, answered, write_task

from fspad_bench.benchmark import lm_eval_tasks
from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.prompts import PlainPrompts, Prompts, prompts_of
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.runner import Runner
from fspad_bench.integrations import lm_eval as door
from fspad_bench.models.tiny import tiny_tokenizer
from fspad_bench.util.errors import BenchError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is an extra"
)


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
