"""EAGLE-3 drafts from the states that its head names, on the host and on a device."""

import json

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle3 import Eagle3
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.device_loop import DeviceLoop
from fspad_bench.errors import BenchError
from fspad_bench.models.load import load_target

PROMPT = [40, 41, 42] * 5


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(
    "options",
    [{"tree": "auto"}, {"nodes": 20, "depth": 5}, {"drafting": "ranked"}, {"vocabulary": "head"}],
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
