"""The fixtures of lm-eval: its `hf` and a task of its, which two files of tests share."""

import re

import harness as lm_eval_harness
import pytest
from harness import ASKED, answered, write_task

from fspad_bench.models.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def harness():
    """lm-eval with our model registered, imported when the first test asks for it."""
    pytest.importorskip("lm_eval")
    return lm_eval_harness.loaded()


@pytest.fixture(scope="session")
def hf(harness):
    return harness.HFLM(pretrained=tiny_model().float(), tokenizer=tiny_tokenizer(), batch_size=1)


@pytest.fixture(scope="session")
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
