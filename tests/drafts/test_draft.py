"""A draft's level has the bits of its parts: of the layer in one call, and of each row alone."""

from types import SimpleNamespace

import pytest
import torch
from doubles import VOCABULARY, WIDE, WIDTHS, random_model

from fspad_bench.core.protocols import Context
from fspad_bench.core.sampling import Sampler
from fspad_bench.drafts.draft import CachedDraft
from fspad_bench.drafts.head import Head
from fspad_bench.drafts.network import DraftNetwork, architectures
from fspad_bench.drafts.trees.levels import HeadLevels
from fspad_bench.engine.cpu import native
from fspad_bench.engine.target import TransformersTarget

pytestmark = pytest.mark.skipif(native.native() is None, reason="nothing is compiled here")
STEPPED = [name for name, kind in architectures().items() if issubclass(kind, DraftNetwork)]
PROMPT = [1, 3, 2, 6, 9, 4]


@pytest.fixture(scope="module", params=native.KINDS, ids=str)
def target(request):
    options = WIDE | WIDTHS["llama"] | {"num_hidden_layers": 4}
    return TransformersTarget(random_model("llama", request.param, **options), None)


def head_for(target, name):
    torch.manual_seed(5)
    kind = architectures()[name]
    network = kind(kind.shape_for(target.config)).to(target.dtype).eval().requires_grad_(False)
    return Head(network, torch.arange(0, VOCABULARY, 2), target.name, target.identity)


@torch.inference_mode()
def levels_of(target, head, *, in_one_call, nodes):
    """Return the logits of the root, of a level of these nodes, and of a level below it."""
    draft = CachedDraft(target, head)
    assert draft.network.layer is not None
    if not in_one_call:
        draft.network.layer = None
    with target.session(len(PROMPT), capture=draft.capture) as session:
        draft.begin(Context([*PROMPT, 7], len(PROMPT), Sampler()), session.prefill(PROMPT))
    levels = HeadLevels(draft)
    root = levels.absorb()
    first = levels.expand(nodes, [0] * len(nodes))
    below = levels.expand([token + 1 for token in nodes], range(len(nodes)))
    return SimpleNamespace(root=root, first=first, below=below)


@pytest.mark.parametrize("name", STEPPED)
def test_a_level_in_one_call_has_the_bits_of_its_parts(target, name):
    head = head_for(target, name)
    ours = levels_of(target, head, in_one_call=True, nodes=[5, 8, 13, 21])
    parts = levels_of(target, head, in_one_call=False, nodes=[5, 8, 13, 21])
    for level in ("root", "first", "below"):
        assert torch.equal(getattr(ours, level), getattr(parts, level))


@pytest.mark.parametrize("name", STEPPED)
def test_a_node_has_the_same_bits_alone_and_beside_others(target, name):
    head = head_for(target, name)
    together = levels_of(target, head, in_one_call=True, nodes=[5, 8, 13, 21])
    alone = levels_of(target, head, in_one_call=True, nodes=[13])
    assert torch.equal(together.first[2], alone.first[0])
    assert torch.equal(together.below[2], alone.below[0])
