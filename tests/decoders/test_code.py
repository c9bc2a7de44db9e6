"""The hash of a decoder's code: its file, and the helpers that it imports from where it lies."""

from __future__ import annotations

import hashlib
import importlib
import sys

import pytest

from fspad_bench.decoders import code
from fspad_bench.decoders.code import code_hashes
from fspad_bench.decoders.fspad import Fspad

FILES = {
    "acme_code.py": "import json\nimport acme_helper\nclass Decoder:\n    pass\n",
    "acme_helper.py": "from acme_tools.deep import tool\n",
    "acme_tools/__init__.py": "",
    "acme_tools/deep.py": "def tool():\n    from . import lazy\n",
    "acme_tools/lazy.py": "import torch\n",
    "acme_other.py": "import acme_code\n",
    "acme_package/__init__.py": "",
    "acme_package/main.py": "from .parts.one import x\nclass Decoder:\n    pass\n",
    "acme_package/parts/__init__.py": "from ..shared import y\n",
    "acme_package/parts/one.py": "from acme_package import more\nx = 1\n",
    "acme_package/shared.py": "y = 2\n",
    "acme_package/more.py": "import acme_other\n",
    "acme_package/unused.py": "",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[name]


def hashes(module):
    return code_hashes(importlib.import_module(module).Decoder)


def changed(folder, module):
    """Return the files whose edit changes the hashes of a decoder in this module."""
    before = hashes(module)
    names = set()
    for name in FILES:
        path = folder / name
        text = path.read_text()
        path.write_text(text + "# edited\n")
        if hashes(module) != before:
            names.add(name)
        path.write_text(text)
    assert hashes(module) == before
    return names


def test_every_helper_that_is_imported_counts_and_no_other_file(folder):
    assert changed(folder, "acme_code") == {
        "acme_code.py",
        "acme_helper.py",
        "acme_tools/__init__.py",
        "acme_tools/deep.py",
        "acme_tools/lazy.py",
    }


def test_relative_imports_of_a_package_are_followed(folder):
    assert changed(folder, "acme_package.main") == {
        "acme_package/__init__.py",
        "acme_package/main.py",
        "acme_package/parts/__init__.py",
        "acme_package/parts/one.py",
        "acme_package/shared.py",
        "acme_package/more.py",
        "acme_other.py",
        "acme_code.py",
        "acme_helper.py",
        "acme_tools/__init__.py",
        "acme_tools/deep.py",
        "acme_tools/lazy.py",
    }


def test_of_an_installed_package_only_its_own_modules_count(folder, monkeypatch):
    monkeypatch.setattr(code, "INSTALLED", (folder,))
    assert changed(folder, "acme_code") == {"acme_code.py"}
    assert "acme_other.py" not in changed(folder, "acme_package.main")


def test_a_decoder_in_one_file_has_the_hash_of_that_file_alone(folder):
    (folder / "acme_code.py").write_text("class Decoder:\n    pass\n")
    content = (folder / "acme_code.py").read_bytes()
    assert hashes("acme_code") == {"code_sha256": hashlib.sha256(content).hexdigest()}


def test_a_helper_with_a_syntax_error_is_hashed_all_the_same(folder):
    module = importlib.import_module("acme_code")
    (folder / "acme_helper.py").write_text("def\0")
    assert "helpers_sha256" in code_hashes(module.Decoder)


def test_what_has_no_source_has_no_hash():
    assert code_hashes(type("Built", (), {"__module__": "nowhere"})) == {}
    assert code_hashes(Fspad) == {}  # this package's source has a hash of its own
