"""The compiled functions are used where they are right, and torch computes where they are not."""

import shutil

import pytest
import torch
from compiled import needs_compiler
from doubles import WIDE, WIDTHS, random_model

from fspad_bench.engine.cpu import compiler, native
from fspad_bench.engine.target import TransformersTarget

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def library():
    """The path of the library, which is compiled by now."""
    return compiler.built()


@pytest.fixture
def fresh(library, monkeypatch, tmp_path):
    """Empty the cache of compiled libraries, as for a new user."""
    monkeypatch.setenv("FSPAD_BENCH_CACHE", str(tmp_path))
    native.native.cache_clear()
    yield tmp_path
    native.native.cache_clear()


def test_the_compiled_functions_are_known_by_their_library(fresh, monkeypatch):
    monkeypatch.setattr(compiler, "FLAGS", ("-O0", *compiler.FLAGS[1:]))  # compiles sooner
    functions = native.native()
    (library,) = fresh.glob("native/*")
    assert functions.signature == library.stem
    assert native.native() is functions


@pytest.mark.parametrize(
    "fault",
    [
        "no compiler",
        "a compiler that fails",
        "a wrong result",
        "other bits in company",
        "other bits of halved weights",
        "no place for it",
        "a folder that others may write",
    ],
)
def test_torch_computes_with_a_note_where_compiling_fails(
    library, fresh, monkeypatch, capsys, fault
):
    if fault == "a wrong result" or fault.startswith("other bits"):  # of what compiles well
        (fresh / "native").mkdir(mode=0o700)
        shutil.copy2(library, fresh / "native")
    if fault == "no compiler":
        monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
        monkeypatch.delenv("CXX", raising=False)
    elif fault == "a compiler that fails":
        monkeypatch.setattr(compiler, "FLAGS", ("-no-such-flag",))
    elif fault == "a wrong result":
        monkeypatch.setattr(
            native.Native, "gated", lambda self, both: both[:, both.shape[1] // 2 :].clone()
        )
    elif fault == "other bits in company":
        real = native.Native.product
        monkeypatch.setattr(
            native.Native,
            "product",
            lambda self, x, *rest: real(self, x, *rest) * (1 + 1e-2 * (len(x) > 5)),
        )
    elif fault == "other bits of halved weights":
        real = native.Native.product
        monkeypatch.setattr(
            native.Native,
            "product",
            lambda self, x, packed, *rest: (
                real(self, x, packed, *rest) * (1 + 1e-6 * (x.dtype != packed.dtype))
            ),
        )
    elif fault == "no place for it":
        (fresh / "native").write_text("a file")
    else:
        (fresh / "native").mkdir()
        (fresh / "native").chmod(0o777)
    assert native.native() is None
    note = capsys.readouterr().err
    assert note.startswith("note: forwards run without native.cpp")
    assert note.count("\n") == 1
    if fault == "a folder that others may write":
        assert "can be written by other users: set FSPAD_BENCH_CACHE" in note
        assert not list((fresh / "native").iterdir())
    target = TransformersTarget(
        random_model("llama", torch.float32, **(WIDE | WIDTHS["llama"])), None
    )
    assert target.forward_name == "fused, stock"
    assert target.attention.name == "torch"
    with target.session(3) as session:
        assert session.prefill([1, 2, 3]).logits.shape == (1, 61)


def test_it_can_be_switched_off(fresh, monkeypatch, capsys):
    monkeypatch.setenv("FSPAD_BENCH_NATIVE", "0")
    assert native.native() is None
    assert not capsys.readouterr().err
    assert not list(fresh.iterdir())


def test_a_library_that_cannot_be_loaded_is_compiled_anew(monkeypatch, capsys):
    """Such as one that another system compiled into a home folder that both share."""
    built = []
    monkeypatch.setattr(
        compiler, "built", lambda anew=False: built.append(anew) or compiler.SOURCE.with_suffix("")
    )

    def loaded(path):
        if not built[-1]:
            raise OSError("version GLIBC_9 not found")
        return real_library

    real_library = object()
    monkeypatch.setattr(compiler, "loaded", loaded)
    for name in ("_computes", "_repeats"):
        monkeypatch.setattr(native, name, lambda functions, dtype: True)
    monkeypatch.setattr(native, "_keeps_halves", lambda functions: True)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    functions = native.native.__wrapped__()
    assert functions.functions is real_library
    assert built == [False, True]
    assert "slower" not in capsys.readouterr().err
