"""Heads on disk load as they were saved; foreign or damaged ones are refused with the reason."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fspad_bench.drafts import head as head_module
from fspad_bench.drafts.drafter import find_head
from fspad_bench.drafts.head import BY_SWITCHES, SWITCHES, Head, load_head, shipped
from fspad_bench.drafts.network import architecture, architectures
from fspad_bench.drafts.shape import Shape
from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.util.errors import BenchError

EAGLE = architecture("eagle")
FSPAD = architecture("fspad")
SIZES = ("d", "m", "heads", "kv_heads", "head_dim", "rope_theta", "eps")


def description(folder):
    return json.loads((folder / "head.json").read_text())


def copied(folder, copy, **facts):
    """Return a copy of a head's folder whose head.json states these facts instead."""
    copy.mkdir()
    (copy / "head.safetensors").write_bytes((folder / "head.safetensors").read_bytes())
    (copy / "head.json").write_text(json.dumps(description(folder) | facts))
    return copy


def assert_same_head(one, other):
    assert type(one.network) is type(other.network)
    assert one.network.shape == other.network.shape
    assert torch.equal(one.vocabulary, other.vocabulary)
    weights = other.network.state_dict()
    assert weights.keys() == one.network.state_dict().keys()
    for name, weight in one.network.state_dict().items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("name", architectures())
def test_a_saved_head_loads_as_it_was(tiny, heads, tmp_path, name):
    head = load_head(heads[name], tiny, architecture(name))
    Head(head.network, head.vocabulary, head.target, head.identity, {"note": 1}).save(tmp_path)
    again = load_head(tmp_path, tiny, architecture(name))
    assert_same_head(head, again)
    assert again.facts["note"] == 1
    assert (again.target, again.identity) == (tiny.name, tiny.identity)


@pytest.mark.parametrize("name", BY_SWITCHES.values())
def test_format_1_loads_to_the_same_network_as_format_2(tiny, heads, tmp_path, name):
    """Format 1 has three switches among the sizes in place of the architecture's name."""
    new = description(heads[name])
    assert (new["format"], new["architecture"]) == (2, name)
    assert set(new["shape"]) == set(SIZES)
    (switches,) = (switches for switches, known in BY_SWITCHES.items() if known == name)
    old = {k: v for k, v in new.items() if k != "architecture"} | {"format": 1}
    old["shape"] = new["shape"] | dict(zip(SWITCHES, switches, strict=True))
    folder = copied(heads[name], tmp_path / "old")
    (folder / "head.json").write_text(json.dumps(old))
    assert_same_head(load_head(folder, tiny), load_head(heads[name], tiny))


def test_a_combination_of_switches_that_never_was_is_refused(tiny, heads, tmp_path):
    facts = description(heads["eagle"])
    switches = {"feature_sampling": True, "split_output": True, "wide": True}
    folder = copied(heads["eagle"], tmp_path / "odd", shape=facts["shape"] | switches)
    about = {k: v for k, v in description(folder).items() if k != "architecture"}
    (folder / "head.json").write_text(json.dumps(about))
    with pytest.raises(BenchError, match="not a usable draft head"):
        load_head(folder, tiny)


@pytest.mark.parametrize(
    ("decoder", "target"),
    [
        ("eagle", "tiny"),
        ("eagle3", "tiny"),
        ("fspad", "tiny"),
        ("eagle", "smollm2-135m"),
        ("fspad", "smollm2-135m"),
    ],
)
def test_every_shipped_head_loads(tiny, decoder, target):
    """On a stand-in with the name, identity and sizes of the target that the file names."""
    folder = shipped(decoder, target)
    about = description(folder)
    stand_in = StandIn(tiny, target, about)
    head = load_head(folder, stand_in, architecture(decoder))
    assert head.network.architecture == about["decoder"] == decoder
    capture = tuple(about["shape"].get("capture", ()))
    sizes = {name: about["shape"][name] for name in SIZES}
    assert head.network.shape == Shape(**sizes, capture=capture)
    assert sum(p.numel() for p in head.network.parameters()) == about["parameters"]
    assert all(p.isfinite().all() for p in head.network.parameters())
    assert not any(p.requires_grad for p in head.network.parameters())
    assert Calibration.of(head.facts["calibration"]).greedy
    assert len(head.sha256) == 64


class StandIn:
    """A target without a model: the attributes that loading a head reads."""

    def __init__(self, tiny, name, about):
        self.name = name
        self.identity = about["identity"]
        self.device = tiny.device
        self.dtype = torch.float32
        self.config = type(tiny.config)(
            hidden_size=about["shape"]["d"],
            num_attention_heads=about["shape"]["heads"],
            vocab_size=50_000,
        )


def test_a_head_is_known_by_the_content_of_both_files(tiny, heads, tmp_path):
    original = load_head(heads["eagle"], tiny)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("head.json", "head.safetensors"):
        (elsewhere / name).write_bytes((heads["eagle"] / name).read_bytes())
    assert load_head(elsewhere, tiny).sha256 == original.sha256
    described = copied(heads["eagle"], tmp_path / "described", calibration=Calibration().facts())
    assert load_head(described, tiny).sha256 != original.sha256
    trained = tmp_path / "trained"
    network = load_head(heads["eagle"], tiny).network
    network.fuse.fc.bias.add_(1.0)
    Head(network, original.vocabulary, tiny.name, tiny.identity, {"decoder": "eagle"}).save(trained)
    assert (trained / "head.json").read_bytes() == (heads["eagle"] / "head.json").read_bytes()
    assert load_head(trained, tiny).sha256 != original.sha256


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"identity": "other", "target": "vicuna"}, "was trained for vicuna"),
        ({"shape": {}}, "not a usable draft head"),
        ({"architecture": "fsapd"}, "unknown draft network 'fsapd'"),
    ],
)
def test_a_foreign_head_is_refused(tiny, heads, tmp_path, facts, message):
    with pytest.raises(BenchError, match=message):
        load_head(copied(heads["eagle"], tmp_path / "copy", **facts), tiny, EAGLE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_theta", None),
        ("rope_theta", math.nan),
        ("rope_theta", 0),
        ("rope_theta", 10**30),
        ("eps", "1e-6"),
        ("eps", -1.0),
        ("eps", math.inf),
        ("kv_heads", 0),
        ("heads", 4.0),
        ("qkv_bias", 0),
        ("capture", [1.5]),
        ("vocabulary", -1),
        ("levels", 10**9),
        ("levels", -1),
        ("levels", True),
        ("levels", 2.0),
    ],
)
def test_a_size_that_no_network_has_is_refused(tiny, heads, tmp_path, name, value):
    shape = description(heads["eagle"])["shape"] | {name: value}
    with pytest.raises(BenchError, match=f"not a usable draft head: its shape's {name} is "):
        load_head(copied(heads["eagle"], tmp_path / "copy", shape=shape), tiny, EAGLE)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([1], "its calibration is \\[1\\], not curves by name"),
        ({"greedy": []}, "its calibration's greedy is \\[\\], not a list of curves"),
        ({"greedy": [{"shift": None}]}, "its calibration's shift is None, not a number"),
        ({"sampled": [{"slope": math.nan}]}, "its calibration's slope is nan, not a number"),
        ({"sampled": [{"first": 0.9, "any": 0.5}]}, "its calibration's chances are 0.9, 0.5"),
        ({"greedy": [{"steep": 1}]}, "not a usable draft head: "),
        ({"often": [{}]}, "not a usable draft head: "),
    ],
)
def test_a_calibration_that_is_none_is_refused(tiny, heads, tmp_path, calibration, message):
    copy = copied(heads["eagle"], tmp_path / "copy", calibration=calibration)
    with pytest.raises(BenchError, match=message):
        load_head(copy, tiny, EAGLE)


def test_a_head_of_another_architecture_is_refused(tiny, heads):
    with pytest.raises(BenchError, match="holds the head of 'eagle', not of 'fspad'"):
        load_head(heads["eagle"], tiny, FSPAD)


def test_other_sizes_than_the_weights_have_are_refused(tiny, heads, tmp_path):
    shape = description(heads["eagle"])["shape"] | {"m": 81}
    with pytest.raises(BenchError, match="not a usable draft head"):
        load_head(copied(heads["eagle"], tmp_path / "copy", shape=shape), tiny, EAGLE)


def test_a_damaged_file_is_refused(tiny, heads, tmp_path):
    copy = copied(heads["eagle"], tmp_path / "copy")
    weights = (copy / "head.safetensors").read_bytes()
    (copy / "head.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BenchError, match="not a usable draft head"):
        load_head(copy, tiny, EAGLE)


def test_a_missing_head_comes_with_a_way_to_get_one(tiny, tmp_path):
    with pytest.raises(BenchError) as raised:
        load_head(tmp_path / "absent", tiny, EAGLE)
    assert "no draft head at" in raised.value.message
    assert "fspad-bench train" in raised.value.hint


def test_without_a_folder_the_shipped_head_is_found(tiny, monkeypatch):
    assert find_head("", FSPAD, tiny).network.architecture == "fspad"
    monkeypatch.setattr(tiny, "name", "unheard")
    with pytest.raises(BenchError) as raised:
        find_head("", FSPAD, tiny)
    assert raised.value.message == "no fspad head is shipped for target 'unheard'"
    assert "train --decoder fspad --target unheard" in raised.value.hint


def test_a_home_folder_is_expanded(tiny, heads, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(heads["eagle"]).parent))
    assert find_head("~/eagle", EAGLE, tiny).network.architecture == "eagle"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("full")])
def test_a_disk_that_takes_no_head_is_one_clear_error(tiny, heads, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    loaded = load_head(heads["fspad"], tiny)
    monkeypatch.setattr(head_module, "save_file", fail)
    with pytest.raises(BenchError, match=f"cannot write to {tmp_path / 'new'}"):
        loaded.save(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    "vocabulary",
    [[], [1, 1, 2], [2, 1], [-1, 2], [[1, 2]]],
    ids=["empty", "twice", "down", "-1", "2d"],
)
def test_a_draft_vocabulary_is_a_list_of_ascending_ids(tiny, heads, tmp_path, vocabulary):
    head = load_head(heads["eagle"], tiny)
    ids = torch.tensor(vocabulary, dtype=torch.int64)
    replace(head, vocabulary=ids).save(tmp_path)
    with pytest.raises(BenchError, match="its draft vocabulary is not a list of ascending ids"):
        load_head(tmp_path, tiny)


def test_a_draft_vocabulary_beyond_the_targets_is_refused(tiny, heads, tmp_path):
    head = load_head(heads["eagle"], tiny)
    replace(head, vocabulary=torch.tensor([2, 97])).save(tmp_path)
    with pytest.raises(BenchError, match="does not fit tiny: it drafts token 97 of 97"):
        load_head(tmp_path, tiny)


def test_weights_that_are_not_finite_in_the_targets_precision_are_refused(tiny, heads, tmp_path):
    head = load_head(heads["eagle"], tiny)
    head.network.fuse.fc.weight[0, 0] = 1e6
    head.save(tmp_path)
    load_head(tmp_path, tiny)
    half = StandIn(tiny, tiny.name, description(tmp_path))
    half.dtype = torch.float16
    with pytest.raises(BenchError, match=r"fuse.fc.weight holds .* not finite in float16"):
        load_head(tmp_path, half)
    head.network.fuse.fc.weight[0, 0] = torch.nan
    head.save(tmp_path)
    with pytest.raises(BenchError, match=r"fuse.fc.weight holds .* not finite in float64"):
        load_head(tmp_path, tiny)
