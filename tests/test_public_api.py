"""The public names: what they are, that they are lazy, and that they resolve."""

import subprocess
import sys

import pytest

import fspad_bench


def test_every_public_name_resolves_to_an_object_of_that_name():
    for name in fspad_bench.__all__:
        assert getattr(fspad_bench, name).__name__ == name
        assert name in dir(fspad_bench)
        assert name in fspad_bench.__doc__


def test_they_are_few_and_sorted():
    assert len(fspad_bench.__all__) == 13
    assert fspad_bench.__all__ == sorted(fspad_bench.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Shrub'"):
        _ = fspad_bench.Shrub


def test_importing_the_package_imports_no_torch():
    code = "import sys, fspad_bench; fspad_bench.BenchError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
