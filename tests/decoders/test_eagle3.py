"""EAGLE-3 drafts from the states that its head names, on the host and on a device."""

import json

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle3 import Eagle3, Eagle3Network
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.drafts.draft import CachedDraft
from fspad_bench.drafts.head import Head
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.device_loop import DeviceLoop
from fspad_bench.lossless.engines import wide_target
from fspad_bench.models.load import load_target
from fspad_bench.util.errors import BenchError

PROMPT = [40, 41, 42] * 5


@pytest.mark.parametrize(
    ("temperature", "options"),
    [
        (0.0, {"nodes": 20, "depth": 5}),
        (0.7, {"tree": "auto"}),
        (1.0, {"nodes": 20, "depth": 5}),
        (1.0, {"drafting": "ranked"}),
        (1.0, {"vocabulary": "head"}),
    ],
    ids=str,
)
def test_its_output_is_vanillas(tiny, heads, temperature, options):
    sampler = Sampler(temperature, seed=8)
    drafter = Eagle3(tiny, head=str(heads["eagle3"]), **{"nodes": 12, "depth": 3} | options)
    assert drafter.capture == (0, 1, 2)
    drafted = generate(tiny, drafter, sampler, PROMPT, Limit(24))
    assert sum(drafted.drafted) > 0
    assert drafted.tokens == generate(tiny, Vanilla(tiny), sampler, PROMPT, Limit(24)).tokens


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.0, seed=4)], ids=["greedy", "T=1"])
def test_the_device_drafts_what_the_host_does(heads, monkeypatch, sampler):
    monkeypatch.setenv(kernels.VARIABLE, "reference")
    target = load_target("tiny")
    drafter = Eagle3(target, head=str(heads["eagle3"]), nodes=10, depth=3)
    builder = drafter.device_drafter()
    assert builder.capture == (0, 1, 2)
    device = DeviceLoop(target, builder).generate(sampler, PROMPT, Limit(20))
    host = generate(target, drafter, sampler, PROMPT, Limit(20))
    assert device.tokens == host.tokens
    assert device.committed == host.committed


def test_a_head_for_a_deeper_target_is_refused(tiny, heads, tmp_path):
    about = json.loads((heads["eagle3"] / "head.json").read_text())
    about["shape"]["capture"] = [2, 15, 27]
    (tmp_path / "head.json").write_text(json.dumps(about))
    (tmp_path / "head.safetensors").write_bytes((heads["eagle3"] / "head.safetensors").read_bytes())
    with pytest.raises(BenchError, match="it reads hidden state 15 of 0 to 2"):
        Eagle3(tiny, head=str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_the_compiled_forward_drafts_from_captured_states(dtype):
    """Of a target whose widths it serves; where it is not available, the same test of torch's."""
    target = wide_target(dtype)
    torch.manual_seed(2)
    network = Eagle3Network(Eagle3Network.shape_for(target.config))
    network = network.to(dtype).requires_grad_(False)
    head = Head(network, torch.arange(97), target.name, target.identity)
    tokens = list(range(20, 33))
    draft = CachedDraft(target, head)
    with target.session(len(tokens), capture=draft.capture) as session:
        scores = session.prefill(tokens[:-1])
    e = target.embedding(torch.tensor(tokens[1:]))
    rows = torch.ones(1, len(e), dtype=torch.bool)
    expected = network(e[None], scores.features[None], rows).h_logit[-1:]
    draft.begin(Context(tokens, len(tokens) - 1), scores)
    bound = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(draft.absorb().h_logit, expected, rtol=0, atol=bound)
    drafter = Eagle3(target, head, nodes=8, depth=3)
    drafted = generate(target, drafter, Sampler(1.0), PROMPT, Limit(12))
    assert (
        drafted.tokens == generate(target, Vanilla(target), Sampler(1.0), PROMPT, Limit(12)).tokens
    )
