"""The target's token after every node, and the walk: Triton, the reference and the host agree."""

import pytest
import torch

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import match
from fspad_bench.engine.gpu import reference, top_k_top_p, verification
from fspad_bench.engine.gpu.tensors import Nodes, SamplerTensors, Walk

BOTH = [verification, reference]
SAMPLERS = [
    Sampler(),
    Sampler(1.0, seed=3),
    Sampler(0.3, stream="another"),
    Sampler(0.7, top_k=1),
    Sampler(0.7, top_k=5),
    Sampler(1.0, top_k=10**6),
    Sampler(0.7, top_p=0.8),
    Sampler(1.3, top_p=1e-6),
    Sampler(1.3, top_k=20, top_p=0.9),
    Sampler(5.0, top_k=600, top_p=0.999),
]
# The interpreter's time goes by programs: fewer nodes there.
DEPTHS = [0, 1, 1, 2, 2, 3] if torch.cuda.is_available() else [0, 1, 3]


def expected(sampler, logits, position):
    return [
        sampler.next(row, position + depth) for row, depth in zip(logits.cpu(), DEPTHS, strict=True)
    ]


def some(logits):
    """Return as many of six rows as there are depths, those of every kind among them."""
    return logits[:: len(logits) // len(DEPTHS)]


def choices(kernels, sampler, logits, position, device):
    depths = torch.tensor(DEPTHS, dtype=torch.int32, device=device)
    at = torch.tensor([position], dtype=torch.int32, device=device)
    return kernels.choose(logits, depths, at, SamplerTensors.of(sampler, device)).tolist()


@pytest.mark.sampled(7)
@pytest.mark.parametrize("kernels", BOTH, ids=["triton", "reference"])
@pytest.mark.parametrize(
    "sampler", SAMPLERS, ids=lambda s: f"{s.temperature:g}-{s.top_k}-{s.top_p:g}"
)
@pytest.mark.parametrize("vocabulary", [97, 700])
def test_every_node_gets_the_token_of_the_sampler(kernels, sampler, vocabulary, device):
    logits = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 3
    # Equal logits, also where top-k and top-p end: the smaller id comes first.
    logits[2:4] = (logits[2:4] * 4).round() / 4
    logits[4:] = logits[4:].round()
    logits = some(logits)
    assert choices(kernels, sampler, logits.to(device), 17, device) == expected(sampler, logits, 17)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "sampler", [SAMPLERS[4], SAMPLERS[6], SAMPLERS[9]], ids=["top-k", "top-p", "both"]
)
def test_logits_that_many_programs_share(sampler, device, monkeypatch):
    """The last kept tokens are equal ones of several splits: the smaller ids come first."""
    monkeypatch.setattr(top_k_top_p, "SPLIT", 64)
    logits = torch.zeros(6, 130)
    logits[:, [3, 70]] = 2.0
    logits[3:] += torch.randn(3, 130, generator=torch.Generator().manual_seed(0)).round()
    logits = some(logits)
    assert choices(verification, sampler, logits.to(device), 17, device) == expected(
        sampler, logits, 17
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("position", range(4))
def test_equal_logits_in_two_blocks_of_a_program(position, device, monkeypatch):
    """Top-k keeps the last two of the first block, and as many as are left of the second."""
    monkeypatch.setattr(top_k_top_p, "BLOCK", 32)
    logits = torch.full((len(DEPTHS), 64), -9.0)
    logits[:, 30:] = 0.0
    assert choices(verification, SAMPLERS[4], logits.to(device), position, device) == expected(
        SAMPLERS[4], logits, position
    )


@pytest.mark.parametrize("kernels", BOTH, ids=["triton", "reference"])
def test_a_nucleus_that_ends_among_the_last_of_top_k(kernels, device):
    logits = torch.zeros(len(DEPTHS), 40)
    logits[:, :4] = 1.0
    sampler = Sampler(1.0, top_k=10, top_p=0.7)  # 0.7 of 4 e + 6 is 4 e + 0.94: one of the six ties
    assert int((sampler.distribution(logits[0]) > 0).sum()) == 5
    assert choices(kernels, sampler, logits.to(device), 5, device) == expected(sampler, logits, 5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kernels", BOTH, ids=["triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_other_precisions(kernels, dtype, device):
    logits = torch.randn(len(DEPTHS), 700, generator=torch.Generator().manual_seed(1)).to(dtype)
    for sampler in (SAMPLERS[0], SAMPLERS[1], SAMPLERS[8]):
        assert choices(kernels, sampler, logits.to(device), 3, device) == expected(
            sampler, logits, 3
        )


@pytest.mark.parametrize("kernels", BOTH, ids=["triton", "reference"])
@pytest.mark.parametrize(
    "sampler", [SAMPLERS[1], SAMPLERS[6], SAMPLERS[8]], ids=["free", "top-p", "both"]
)
def test_forbidden_tokens_stay_forbidden(kernels, sampler, device):
    logits = torch.full((len(DEPTHS), 300), float("-inf"))
    logits[:, [7, 200]] = torch.tensor([0.5, 0.0])
    tokens = choices(kernels, sampler, logits.to(device), 9, device)
    assert tokens == expected(sampler, logits, 9)
    assert set(tokens) <= {7, 200}


@pytest.mark.parametrize("position", [0, 2**20, 2**31 - 9])
def test_far_positions_wrap_as_on_the_host(position, device):
    logits = torch.zeros(len(DEPTHS), 90)
    assert choices(verification, SAMPLERS[1], logits.to(device), position, device) == expected(
        SAMPLERS[1], logits, position
    )


@pytest.mark.parametrize("kernels", BOTH, ids=["triton", "reference"])
@pytest.mark.parametrize("nodes", [1, 5, 40, 64, 65, 128])
@pytest.mark.parametrize("padded", [False, True])
def test_the_walk_is_that_of_match(kernels, nodes, padded, device, grown):
    for seed in range(4):
        tree = grown(nodes, seed)
        dice = torch.Generator().manual_seed(seed)
        candidates = [children or [0] for children in tree.offspring]
        picks = [row[int(torch.randint(len(row), (), generator=dice))] for row in candidates]
        tokens = [tree.tokens[pick] for pick in picks]
        logits = torch.nn.functional.one_hot(torch.tensor(tokens), nodes + 2).float()
        accepted = match(tree, logits, Sampler(), 1)
        size = 128 if padded else nodes
        choice = torch.tensor(tokens + [0] * (size - nodes), dtype=torch.int32, device=device)
        walk = kernels.walk(Nodes.of(tree, device, size), choice)
        assert walk.path[: int(walk.count)].tolist() == accepted.path
        assert int(walk.bonus) == accepted.bonus


@pytest.mark.parametrize("kernels", BOTH, ids=["triton", "reference"])
def test_a_padding_node_is_never_accepted(kernels, device):
    nodes = Nodes.of(Tree.root(3), device, 8)
    walk = kernels.walk(nodes, torch.full((8,), -1, dtype=torch.int32, device=device))
    assert (int(walk.count), int(walk.bonus)) == (1, -1)


def test_padding_nodes_see_only_themselves():
    nodes = Nodes.of(Tree.chain(5, [6, 7]), torch.device("cpu"), 5)
    assert nodes.bits.flatten().tolist() == [0b1, 0b11, 0b111, 0b1000, 0b10000]
    assert nodes.tokens.tolist() == [5, 6, 7, -1, -1]
    assert nodes.depths.tolist() == [0, 1, 2, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0])
@pytest.mark.parametrize("node", [0, 1, 2])
def test_logits_after_an_accepted_node_must_be_finite(device, node, value, dtype):
    """Node 1 was refused: what follows it does not matter."""
    path = torch.tensor([0, 2, 0, 0], dtype=torch.int32, device=device)
    count = torch.tensor(2, dtype=torch.int32, device=device)
    logits = torch.linspace(-3, 4, 4 * 50, device=device).reshape(4, 50).to(dtype)
    logits[node] = value
    broken = Walk(path, count, count).broken(logits)
    assert broken.dtype == torch.int32
    assert int(broken) == (value != 0 and node != 1)
    logits[node] = 1.0
    logits[node, 7] = float("-inf")  # a forbidden token
    assert not int(Walk(path, count, count).broken(logits))
