"""Models, prompts, trees and sessions that a target refuses."""

from __future__ import annotations

import pytest
from doubles import LLAMA3_ROPE, VOCABULARY, random_model, random_target
from transformers import Gemma3TextConfig, LlamaConfig

from fspad_bench.core.protocols import LayerPlan
from fspad_bench.core.tree import Tree
from fspad_bench.engine.architecture import check_architecture
from fspad_bench.engine.target import ContextError, TransformersTarget
from fspad_bench.util.errors import BenchError


@pytest.fixture(scope="module")
def target():
    return random_target("llama", max_position_embeddings=40)


@pytest.fixture
def session(target):
    with target.session(10) as session:
        session.prefill([1, 2])
        yield session


def test_score_before_the_last_tree_is_committed(session):
    session.score(Tree.root(1))
    with pytest.raises(RuntimeError, match="before the last tree was committed"):
        session.score(Tree.root(1))
    session.prefill([1, 2])
    session.score(Tree.root(1))


@pytest.mark.parametrize(
    "tree", [Tree.root(VOCABULARY), Tree.chain(0, [VOCABULARY]), Tree.chain(0, [3, -1])]
)
def test_a_token_outside_the_vocabulary(session, tree):
    with pytest.raises(BenchError, match="outside the target's vocabulary"):
        session.score(tree)
    assert session.length == 2
    session.score(Tree.chain(0, [VOCABULARY - 1]))


@pytest.mark.parametrize("prompt", [[1, VOCABULARY], [-1, 2]])
def test_a_prompt_outside_the_vocabulary(session, prompt):
    with pytest.raises(BenchError, match=f"outside the target's vocabulary of {VOCABULARY}"):
        session.prefill(prompt)


def test_a_tree_of_129_nodes(session):
    with pytest.raises(BenchError, match="129 nodes is too large"):
        session.score(Tree.chain(0, [1] * 128))
    session.score(Tree.chain(0, [1] * 127))


def test_a_capacity_beyond_the_context(target):
    target.session(40)
    with pytest.raises(ContextError, match="exceed the context of 40") as caught:
        target.session(41)
    assert isinstance(caught.value, BenchError)
    assert "--max-new-tokens" in caught.value.hint


def test_an_empty_prompt(session):
    with pytest.raises(BenchError, match="empty"):
        session.prefill([])


def test_layers_that_the_target_does_not_have(target):
    with pytest.raises(ValueError, match="layers of model are 0 to 1"):
        target.session(5, layers=LayerPlan(skip_mlp=frozenset([2])))
    with pytest.raises(ValueError, match="hidden states of model are 0 to 2"):
        target.session(5, capture=(3,))
    with pytest.raises(ValueError, match="from a whole forward only"):
        target.session(5, layers=LayerPlan(frozenset([0])), capture=(1,))


def test_skipped_layers_of_the_stock_forward():
    with pytest.raises(BenchError, match="skips no layers"):
        random_target("not fused").session(5, layers=LayerPlan(frozenset([0])))


def test_entries_of_another_target(target, session):
    with pytest.raises(ValueError, match="of its own target"):
        random_target("llama").session(5, share=session)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        {
            "rope_type": "longrope",
            "factor": 2.0,
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [3.0] * 4,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_embeddings_that_depend_on_the_length(rope):
    """A deep node would change the frequencies of the root, and so the target's tokens."""
    with pytest.raises(BenchError, match="rotary embedding"):
        random_target("llama", rope_parameters=rope)


def test_rotary_embeddings_of_one_type_of_layer_that_depend_on_the_length():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = Gemma3TextConfig(rope_parameters={"full_attention": rope})
    with pytest.raises(BenchError, match="rotary embedding 'dynamic'"):
        check_architecture(config)


def test_rotary_embeddings_of_fixed_frequencies_are_supported():
    check_architecture(LlamaConfig(rope_parameters=LLAMA3_ROPE))


def test_a_model_that_scales_its_logits():
    model = random_model("llama")
    stock = model.forward

    def scaled(*arguments, **options):
        out = stock(*arguments, **options)
        out.logits = out.logits * 0.9
        return out

    model.forward = scaled
    with pytest.raises(BenchError, match="LM head does not map"):
        TransformersTarget(model, None)
