"""The guard of this package's own code notes whatever is another object than it was."""

import functools
import sys
from types import ModuleType

import pytest

from fspad_bench.benchmark.guards.code import CodeGuard

NAME = "fspad_bench.made_up"
SOURCE = """
import functools

def function():
    pass

@functools.cache
def remembered():
    pass

class Thing:
    def method(self):
        pass

    @property
    def size(self):
        return 3

    @functools.cached_property
    def weight(self):
        return 4

    @staticmethod
    def of():
        pass

    @classmethod
    def like(cls):
        pass
"""


def other():
    pass


def replace_code(function):
    function.__code__ = other.__code__


def module_of(source):
    module = ModuleType(NAME)
    exec(source, vars(module))
    module.Thing.__module__ = NAME
    return module


@pytest.fixture
def module(monkeypatch):
    module = module_of(SOURCE)
    monkeypatch.setitem(sys.modules, NAME, module)
    return module


def test_nothing_has_changed(module):
    assert CodeGuard().changed() == ""


def test_what_is_added_is_no_change(module):
    guard = CodeGuard()
    module.more = other
    assert guard.changed() == ""


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: setattr(m, "function", other), "function"),
        (lambda m: replace_code(m.function), "function"),
        (lambda m: setattr(m.Thing, "method", other), "Thing.method"),
        (lambda m: replace_code(m.Thing.method), "Thing.method"),
        (lambda m: setattr(m.Thing, "size", property(other)), "Thing.size"),
        (lambda m: setattr(m.Thing, "of", staticmethod(other)), "Thing.of"),
        (lambda m: setattr(m.Thing, "weight", functools.cached_property(other)), "Thing.weight"),
        (lambda m: replace_code(m.remembered.__wrapped__), "remembered"),
        (lambda m: replace_code(vars(m.Thing)["size"].fget), "Thing.size"),
        (lambda m: replace_code(vars(m.Thing)["weight"].func), "Thing.weight"),
        (lambda m: replace_code(m.Thing.of), "Thing.of"),
        (lambda m: replace_code(m.Thing.like.__func__), "Thing.like"),
        (lambda m: setattr(m, "Thing", module_of(SOURCE).Thing), "Thing"),
        (lambda m: delattr(m, "function"), "function"),
    ],
)
def test_another_object_is_named(module, change, name):
    guard = CodeGuard()
    change(module)
    assert guard.changed() == f"{NAME}.{name}"


def test_another_module_of_the_name_is_named(module, monkeypatch):
    guard = CodeGuard()
    monkeypatch.setitem(sys.modules, NAME, module_of(SOURCE))
    assert guard.changed() == NAME
    monkeypatch.delitem(sys.modules, NAME)
    assert guard.changed() == NAME
