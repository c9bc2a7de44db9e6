"""What only a real model can show: SmolLM2-135M, fetched on first use. `tox -e real`."""

import numpy as np
import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.about import about
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.head import Head, shipped
from fspad_bench.drafts.network import GROUP, architecture
from fspad_bench.engine.together import keeps_bits
from fspad_bench.integrations.transformers_generate import StockGenerate
from fspad_bench.models.load import load_target
from fspad_bench.util import registry

pytestmark = pytest.mark.real
QUESTIONS = (
    "Name three rivers of Europe and say where each of them ends.",
    "Explain how a bicycle stays upright.",
)


@pytest.fixture(scope="module")
def smollm2():
    return load_target("smollm2-135m")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def either(request):
    found = load_target("smollm2-135m", dtype=request.param)
    if request.param == "bfloat16" and not keeps_bits(found):
        pytest.skip("without a C++ compiler a tree rounds otherwise than its paths")
    return found


def prompt(target, text):
    messages = [{"role": "user", "content": text}]
    return list(
        target.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )["input_ids"]
    )


@pytest.mark.parametrize("text", QUESTIONS)
def test_greedy_vanilla_equals_generate(smollm2, text):
    limit, ids = Limit(64, smollm2.stop_ids), prompt(smollm2, text)
    made = generate(smollm2, Vanilla(smollm2), Sampler(), ids, limit)
    assert made.tokens == StockGenerate(smollm2).generate(ids, Sampler(), limit).tokens


def built(name, target, folder):
    """A decoder with its shipped head, or where none is shipped for this target, a random one."""
    cls = registry.resolve(registry.DECODERS, name)
    if about(name).needs != "a trained head" or name not in registry.names(GROUP):
        return cls(target)
    if shipped(name, target.name).is_dir():
        return cls(target)
    torch.manual_seed(1)
    kind = architecture(name)
    network = kind.build(kind.shape_for(target.config), target)
    vocabulary = torch.arange(target.config.vocab_size)
    Head(network, vocabulary, target.name, target.identity, {"decoder": name}).save(folder)
    return cls(target, head=str(folder))


@pytest.mark.parametrize("name", registry.names(registry.DECODERS))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoders_are_lossless(either, name, temperature, tmp_path):
    decoder = built(name, either, tmp_path / "head")
    decoder.prepare(either)  # else a tree's costs are measured in the first generation
    drafts_by_forwards = about(name).needs == "a draft model"  # without a model, the target's own
    for text in QUESTIONS:
        sampler, ids, limit = (
            Sampler(temperature, seed=3, stream=text),
            prompt(either, text),
            Limit(48, either.stop_ids),
        )
        vanilla = generate(either, Vanilla(either), sampler, ids, limit)
        made = generate(either, decoder, sampler, ids, limit)
        assert made.tokens == vanilla.tokens
        assert len(made.committed) <= vanilla.forwards
        assert drafts_by_forwards or made.forwards <= vanilla.forwards


def test_a_tree_scores_like_its_paths(either):
    ids = prompt(either, QUESTIONS[0])
    tree = Tree([504, 100, 200, 300, 400, 500], [-1, 0, 0, 1, 1, 3])
    with either.session(len(ids) + 16) as session:
        session.prefill(ids)
        together = session.score(tree).logits.clone()
    for node, path in enumerate([[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 4], [0, 1, 3, 5]]):
        with either.session(len(ids) + 16) as session:
            session.prefill(ids)
            for step in path:
                alone = session.score(Tree.root(tree.tokens[step])).logits[0].clone()
                session.commit([0])
        if keeps_bits(either):
            assert torch.equal(together[node], alone)
        else:
            assert (together[node] - alone).abs().max() < 1e-4 * alone.abs().max()


def test_vanilla_passes_the_probability_integral_transform(smollm2):
    """u = F(before y) + U p(y), tokens by descending probability, is uniform for any model if y is
    drawn from p.
    """
    shares, uniform = [], np.random.default_rng(0)
    for number in range(8):
        ids, sampler = prompt(smollm2, QUESTIONS[number % 2]), Sampler(0.8, seed=number)
        tokens = generate(smollm2, Vanilla(smollm2), sampler, ids, Limit(96)).tokens
        with torch.inference_mode():
            hidden = smollm2.model.base_model(
                torch.tensor([ids + tokens[:-1]]), use_cache=False
            ).last_hidden_state[0]
            laws = (smollm2.lm_head(hidden[len(ids) - 1 :]).double() / 0.8).softmax(-1).numpy()
        for law, token in zip(laws, tokens, strict=True):
            above = law[law > law[token]].sum()
            shares.append(above + uniform.random() * law[token])
    shares = np.array(shares)
    counts, expected = np.histogram(shares, 20, (0, 1))[0], len(shares) / 20
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 1e-3
    assert (shares > 1 - 1e-3).sum() <= 6  # 0.8 expected
