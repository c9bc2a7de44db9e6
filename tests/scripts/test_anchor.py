"""The script that measures another engine at the same weights, and the weights that it writes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from parts import LISTENER

pytestmark = pytest.mark.wide
WRITER = Path(__file__).parents[2] / "results/bfloat16_gguf.py"

# Stands for llama-server: says what it was called with, and lists models until it is stopped.
SERVER = f"""#!/usr/bin/env bash
echo "$*" > "$SERVED"
cp "$2" "$SERVED.weights"
{LISTENER} "$6"
"""
# Stands for the interpreter: a run says what it was called with, while the server is there.
PYTHON = f"""#!/usr/bin/env bash
if [ "$1" != -m ]; then exec {sys.executable} "$@"; fi
echo "$*"
exec 3<> "/dev/tcp/127.0.0.1/$PORT"
"""


@pytest.fixture
def weights():
    """Values whose mantissas need rounding, one of them half-way."""
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    values[0, 0] = 1 + 2**-8
    return values


@pytest.fixture
def source(tmp_path, weights):
    path = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_block_count(30)
    writer.add_token_list(["a", "é", ""])
    writer.add_layer_norm_rms_eps(1e-5)
    for name, kind in (("q4", "Q4_1"), ("q8", "Q8_0"), ("whole", "F32")):
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("norm.weight", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_weights_are_the_sources_rounded_once(source, tmp_path):
    output = tmp_path / "bfloat16.gguf"
    subprocess.run([sys.executable, WRITER, source, output], check=True)
    before, after = tensors(source), tensors(output)
    assert list(before) == list(after)
    for name, tensor in after.items():
        values = gguf.quants.dequantize(before[name].data, before[name].tensor_type)
        expected = torch.tensor(values).bfloat16().float().numpy()
        assert (gguf.quants.dequantize(tensor.data, tensor.tensor_type) == expected).all(), name
        assert tensor.tensor_type.name == ("F32" if name == "norm.weight" else "BF16")
    fields = gguf.GGUFReader(output).fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_BF16
    assert fields["tokenizer.ggml.tokens"].contents() == ["a", "é", ""]
    assert fields["llama.block_count"].contents() == 30


@pytest.fixture
def stubs(tmp_path):
    paths = {}
    for name, text in (("server", SERVER), ("python", PYTHON)):
        paths[name] = tmp_path / f"stub-{name}"
        paths[name].write_text(text)
        paths[name].chmod(0o755)
    return SimpleNamespace(**paths)


def test_the_engine_serves_these_weights_while_the_run_lasts(script, stubs, port, source, tmp_path):
    settings = {"PYTHON": str(stubs.python), "LLAMA_SERVER": str(stubs.server), "PORT": port}
    settings |= {"GGUF": str(source), "SERVED": str(tmp_path / "served"), "THREADS": "3"}
    done = script("results/anchor.sh", "questions.jsonl", "--limit", "2", **settings)
    assert done.returncode == 0, done.stderr
    assert f"vanilla,fspad,llama.cpp=served:http://127.0.0.1:{port} " in done.stdout
    assert done.stdout.endswith("--threads 3 --output fspad-results/anchor --limit 2\n")
    words = (tmp_path / "served").read_text().split()
    assert words[words.index("--threads") + 1] == "3"
    assert tensors(tmp_path / "served.weights")["q4.weight"].tensor_type.name == "BF16"
    weights = words[words.index("-m") + 1]
    gone = subprocess.run(
        ["bash", "-c", f'test -e {weights} || exec 3<> "/dev/tcp/127.0.0.1/{port}"']
    )
    assert gone.returncode != 0


def test_an_engine_that_does_not_start_ends_the_script(script, port, source, stubs):
    settings = {"PYTHON": str(stubs.python), "LLAMA_SERVER": "false", "PORT": port}
    done = script("results/anchor.sh", "questions.jsonl", **settings, GGUF=str(source))
    assert done.returncode == 1
    assert "no server on port" in done.stderr
    assert "run --decoder" not in done.stdout
