"""Fixtures of the tests of draft heads."""

import json

import pytest
import torch
from releases import VICUNA
from safetensors.torch import save_file


@pytest.fixture
def publish(tmp_path):
    """`publish(weights, config, file)`: the folder of a published head."""

    def publish(weights, config=VICUNA, file="pytorch_model.bin"):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save = save_file if file.endswith("safetensors") else torch.save
        save(weights, tmp_path / file)
        return tmp_path

    return publish
