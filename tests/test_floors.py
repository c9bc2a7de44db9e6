"""The layers of DESIGN section 2: what may import what, read from the source, nothing run."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fspad_bench"
LAYERS = {
    "plain": [
        "errors",
        "registry",
        "record",
        "stats",
        "table",
        "verdict",
        "paths",
        "progress",
        "machine",
        "parting",
        "plots",
    ],
    "core": ["tree", "sampling", "kernels"],
    "engine": [
        "attention",
        "batch",
        "chat",
        "costs",
        "forward",
        "linear",
        "native",
        "pages",
        "cache",
        "target",
        "tiny",
        "presets",
        "shapes",
        "fetch",
        "verification",
        "decoding",
        "rounds",
    ],
    "methods": ["decoders", "drafts"],
    "work": [
        "task",
        "scoring",
        "method",
        "promise",
        "runner",
        "lossless",
        "distill",
        "profiling",
        "kernel_profile",
    ],
    "doors": ["arguments", "cli", "integrations", "__main__"],
}
RANK = {name: rank for rank, names in enumerate(LAYERS.values()) for name in names}
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "safetensors",
    "huggingface_hub",
    "tokenizers",
    "triton",
    "accelerate",
}
MODULES = sorted(
    str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    for path in PACKAGE.rglob("*.py")
)


def room(module):
    """`drafts.head` -> `drafts`; the package itself is its version, which all may read."""
    return module.partition(".")[0]


def imports(module, *, everywhere):
    """What a module imports, as full dotted names: at its top alone, or inside its functions too."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else at_the_top(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_the_top(tree):
    """The statements that run when a module is imported, those within a top-level `if` or `try` included."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            waiting += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
            ]


def own(module, *, everywhere):
    """Of those the modules of this package, without its name."""
    names = {name.removeprefix("fspad_bench.") for name in imports(module, everywhere=everywhere)}
    return {
        name
        for name in names
        if any(known == name or known == f"{name}.__init__" for known in MODULES)
    }


def test_every_module_has_a_layer():
    assert {room(module) for module in MODULES} - {"__init__"} <= RANK.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["top", "anywhere"])
def test_imports_go_down(module, everywhere):
    above = {
        name for name in own(module, everywhere=everywhere) if RANK[room(name)] > RANK[room(module)]
    }
    assert not above, f"{module} ({room(module)}) imports {above}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in LAYERS["plain"]])
def test_plain_modules_know_no_torch(module):
    assert not {name.partition(".")[0] for name in imports(module, everywhere=True)} & HEAVY


def reached(module, seen=None):
    """Every module of ours that importing this one runs, itself included."""
    seen = seen if seen is not None else set()
    if module not in seen:
        seen.add(module)
        for name in own(module, everywhere=False):
            reached(name if name in MODULES else f"{name}.__init__", seen)
    return seen


@pytest.mark.parametrize("module", [*LAYERS["plain"], "cli", "task", "presets", "fetch", "scoring"])
def test_what_lists_names_imports_nothing_heavy(module):
    loaded = {
        name.partition(".")[0] for m in reached(module) for name in imports(m, everywhere=False)
    }
    assert not loaded & HEAVY


def test_no_decoder_imports_another():
    for module in (m for m in MODULES if room(m) == "decoders"):
        assert not {name for name in own(module, everywhere=True) if room(name) == "decoders"} - {
            "decoders"
        }, module


def test_drafts_know_no_decoder():
    for module in (m for m in MODULES if room(m) == "drafts"):
        assert not {name for name in own(module, everywhere=True) if room(name) == "decoders"}, (
            module
        )


def test_nothing_below_the_doors_imports_the_runner():
    for module in (m for m in MODULES if room(m) not in LAYERS["doors"]):
        assert "runner" not in own(module, everywhere=True), module


def test_the_audit_goes_through_no_decoder_but_vanilla():
    for module in (m for m in MODULES if room(m) == "lossless"):
        used = {
            name for name in own(module, everywhere=True) if room(name) in ("decoders", "drafts")
        }
        assert used <= {"decoders.vanilla"}, module


def test_nobody_imports_in_a_circle():
    graph = {module: own(module, everywhere=False) & set(MODULES) for module in MODULES}
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in leaves}
    assert not graph


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for_and_stays_short(module):
    text = (PACKAGE / f"{module.replace('.', '/')}.py").read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 400


def test_the_walk_sees_what_it_should(tmp_path, monkeypatch):
    """The tests above could pass by seeing nothing."""
    assert {"errors", "stats", "verdict", "record"} & own("table", everywhere=False) == {
        "stats",
        "verdict",
        "record",
    }
    assert "runner" in own("cli", everywhere=True)
    assert "runner" not in own("cli", everywhere=False)
    assert "torch" in imports("sampling", everywhere=False)
    assert reached("cli") == {"cli", "arguments", "errors"}
