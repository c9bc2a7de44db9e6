"""Figures of a baseline change; comments, order and layout do not."""

import pytest
import yaml

from fspad_bench.lossless.baseline_file import edited
from fspad_bench.util.errors import BenchError

FIGURES = {"tokens_per_step": "2.1", "measured": "2.200"}
FLOW = """\
decoder: fspad  # a comment
promises:  # below
  # the first
  - {target: tiny, tokens_per_step: 1.5, options: {tree: fixed}}  # kept
  - {target: tiny, measured: 1.7, tokens_per_step: 1.6}
presets: {}
"""
BLOCK = """\
decoder: fspad
promises:
- target: tiny
  tokens_per_step: 1.5  # least
  task: nq
"""


def test_flow_style():
    assert edited(FLOW, {0: FIGURES, 1: FIGURES}) == FLOW.replace(
        "tokens_per_step: 1.5", "tokens_per_step: 2.1, measured: 2.200"
    ).replace("measured: 1.7, tokens_per_step: 1.6", "measured: 2.200, tokens_per_step: 2.1")


def test_block_style():
    expected = BLOCK.replace("1.5  # least", "2.1\n  measured: 2.200  # least")
    assert edited(BLOCK, {0: FIGURES}) == expected


def test_an_entry_that_merges_another_is_refused_by_line():
    text = BLOCK.replace("- target", "- &a\n  target") + "- <<: *a\n  task: rag\n"
    with pytest.raises(BenchError, match="line 7: tokens_per_step stands elsewhere"):
        edited(text, {1: FIGURES})


@pytest.mark.parametrize("text", [FLOW, BLOCK, BLOCK.replace("\n", "\r\n")])
def test_what_is_written_is_read(text):
    entry = yaml.safe_load(edited(text, {0: FIGURES}))["promises"][0]
    assert (entry["tokens_per_step"], entry["measured"]) == (2.1, 2.2)
    assert edited(text, {}) == text


def test_json_is_yaml():
    text = '{"decoder": "a", "promises": [{"target": "tiny", "tokens_per_step": 1}]}'
    assert edited(text, {0: FIGURES}) == text.replace(": 1}", ": 2.1, measured: 2.200}")


def test_a_list_is_replaced_in_either_style():
    figures = {0: {"steps": "[4, 5]"}}
    flow = "promises:\n- {tokens_per_step: 1, steps: [1, 2], task: nq}\n"
    assert edited(flow, figures) == flow.replace("[1, 2]", "[4, 5]")
    block = "promises:\n- tokens_per_step: 1\n  steps:\n  - 1\n  - 2\n  task: nq\n"
    (entry,) = yaml.safe_load(edited(block, figures))["promises"]
    assert entry == {"tokens_per_step": 1, "steps": [4, 5], "task": "nq"}
    assert edited(edited(block, figures), figures) == edited(block, figures)
