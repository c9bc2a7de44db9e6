"""The floors of the package: which room may import which, read from the source; nothing is run."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fspad_bench"
FLOORS = [  # lowest first; rooms of one floor are independent unless BESIDE says so
    {"__init__"},
    {"util"},
    {"core"},
    {"engine"},
    {"models", "drafts"},
    {"decoders", "training", "distill"},
    {"benchmark"},
    {"analysis"},
    {"lossless", "profiling", "publishing"},
    {"serving"},
    {"cli"},
    {"integrations"},
    {"__main__"},
]
BESIDE = {"training": {"distill", "decoders"}}
PLAIN = {"__init__", "util"}
BUILDING = {
    "decoders.__init__",
    "decoders.about",
    "decoders.border",
    "decoders.build",
    "decoders.code",
    "decoders.foreign",
    "decoders.label",
}
ROOT_FILES = {"__init__.py", "__main__.py"}
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "safetensors",
    "huggingface_hub",
    "tokenizers",
    "triton",
    "accelerate",
    "scipy",
    "matplotlib",
    "lm_eval",
}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(
    str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    for path in PACKAGE.rglob("*.py")
)


def path_of(module):
    return PACKAGE / f"{module.replace('.', '/')}.py"


def room_of(module):
    """Return the first part of a dotted name: `drafts.head` -> `drafts`."""
    return module.partition(".")[0]


@cache
def syntax_tree(module):
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


@cache
def imports(module, *, anywhere):
    """Return the full dotted names a module imports: at its top alone, or inside functions too.

    What is imported for type checkers alone does not count at the top.
    """
    tree = syntax_tree(module)
    names = set()
    for node in ast.walk(tree) if anywhere else statements_at_the_top(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def statements_at_the_top(tree):
    """Yield the statements that run on import, those in top-level `if`, `try` and classes too."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or for_type_checkers(node):
            continue
        yield node
        waiting += statements_in(node)


def statements_in(node):
    """Yield the statements that are directly in a node, or in one of its handlers or cases."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from child.body


def for_type_checkers(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def packages(module, *, anywhere=True):
    """Return the top-level packages a module imports."""
    return {name.partition(".")[0] for name in imports(module, anywhere=anywhere)}


@cache
def own_imports(module, *, anywhere=True):
    """Return the modules of this package that a module imports, `__init__` of a room included."""
    names = set()
    for name in imports(module, anywhere=anywhere):
        if name != "fspad_bench" and not name.startswith("fspad_bench."):
            continue
        local = name.removeprefix("fspad_bench").removeprefix(".")
        for candidate in (local, f"{local}.__init__".removeprefix(".")):
            if candidate in MODULES:
                names.add(candidate)
    return names


def executed(module, seen=None):
    """Return every module of the package that importing this one runs, itself included."""
    seen = set() if seen is None else seen
    if module in seen:
        return seen
    seen.add(module)
    parts = module.split(".")
    parents = {".".join([*parts[:i], "__init__"]) for i in range(len(parts))}
    for name in own_imports(module, anywhere=False) | (parents & set(MODULES)):
        executed(name, seen)
    return seen


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} == FLOOR.keys()


def test_imports_go_down_or_stay_in_the_room():
    for module in (m for m in MODULES if m != "__init__"):
        room = room_of(module)
        allowed = {room} | BESIDE.get(room, set())
        allowed |= {other for other in FLOOR if FLOOR[other] < FLOOR[room]}
        used = {room_of(name) for name in own_imports(module)}
        assert used <= allowed, f"{module} imports from {sorted(used - allowed)}"


def test_util_needs_no_heavy_package():
    for module in (m for m in MODULES if room_of(m) in PLAIN):
        assert not packages(module) & HEAVY, module


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "core"])
def test_the_core_needs_torch_alone(module):
    """It reads no files and no environment variables."""
    outside = packages(module) - sys.stdlib_module_names - {"fspad_bench"}
    assert outside <= {"torch"}
    assert not packages(module) & {"os", "pathlib", "io", "shutil", "tempfile", "subprocess"}
    names = {node.id for node in ast.walk(syntax_tree(module)) if isinstance(node, ast.Name)}
    assert not names & {"open", "print", "input"}
    own = {name for name in own_imports(module) if room_of(name) != "core"}
    assert own <= {"util.errors", "__init__"}


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "decoders"])
def test_no_decoder_imports_another(module):
    """The ablations are made of parts of two decoders."""
    others = {m for m in MODULES if room_of(m) == "decoders"} - BUILDING - {module}
    if module != "decoders.variants":
        assert not own_imports(module) & others


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) == "lossless"])
def test_lossless_uses_no_decoder_but_vanilla(module):
    used = {name for name in own_imports(module) if room_of(name) in ("decoders", "drafts")}
    assert used <= BUILDING | {"decoders.vanilla"}


def test_the_audit_uses_no_decoder_but_vanilla():
    for module in executed("benchmark.audit"):
        if room_of(module) == "decoders":
            assert module in ("decoders.__init__", "decoders.vanilla")


def calls(module, name):
    """Return whether a module calls a function by this name."""
    called = [node.func for node in ast.walk(syntax_tree(module)) if isinstance(node, ast.Call)]
    return any(isinstance(f, ast.Name) and f.id == name for f in called)


def test_text_is_printed_at_one_door():
    """It escapes what a terminal would obey, as cells of tables do, and stdout is kept for it."""
    assert {m for m in MODULES if calls(m, "print")} == {"util.terminal", "util.progress"}
    assert {m for m in MODULES if calls(m, "redirect_stdout")} == {"util.terminal"}
    assert {m for m in MODULES if "tabulate" in packages(m)} == {"util.grid"}
    assert not [m for m in MODULES if "print_exc" in path_of(m).read_text(encoding="utf-8")]


def cycles(graph):
    """Return what is left of a graph once nodes that need none of the rest are removed."""
    while leaves := {node for node, needs in graph.items() if not needs & graph.keys()}:
        graph = {node: needs for node, needs in graph.items() if node not in leaves}
    return graph


def test_no_modules_import_in_a_circle():
    graph = {module: own_imports(module, anywhere=False) - {module} for module in MODULES}
    assert not cycles(graph)


def test_no_rooms_import_in_a_circle():
    """All but the package's face: it names objects of every room, and all may ask its version."""
    graph = {room: set() for room in FLOOR}
    for module in (module for module in MODULES if module != "__init__"):
        graph[room_of(module)] |= {room_of(name) for name in own_imports(module)}
    assert not cycles({room: needs - {room, "__init__"} for room, needs in graph.items()})


def test_every_module_is_short_and_has_a_docstring():
    for module in MODULES:
        assert ast.get_docstring(syntax_tree(module)), module
        lines = path_of(module).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= LONGEST_FILE, module


def test_every_function_is_short():
    for module in MODULES:
        for node in ast.walk(syntax_tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{module}: {node.name}"


def test_the_root_holds_rooms():
    assert {path.name for path in PACKAGE.glob("*.py")} == ROOT_FILES
    others = {path.name for path in PACKAGE.iterdir() if path.is_file() and path.suffix != ".py"}
    assert others == {"py.typed"}
    for room in FLOOR.keys() - {name.removesuffix(".py") for name in ROOT_FILES}:
        assert (PACKAGE / room / "__init__.py").is_file()


@pytest.mark.parametrize("module", ["__init__", "cli.main", "util.registry", "benchmark.tasks"])
def test_listing_names_imports_nothing_heavy(module):
    for name in executed(module):
        assert not packages(name, anywhere=False) & HEAVY, name


def test_importing_the_command_line_loads_nothing_heavy():
    """Read from a running interpreter, which sees what a walk of the source might not."""
    code = (
        "import sys, fspad_bench, fspad_bench.cli.main; "
        "from fspad_bench.util.registry import DECODERS, names; names(DECODERS); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & HEAVY


class TestTheWalk:
    """The tests above could pass by seeing nothing."""

    def test_sees_imports_at_the_top_and_inside_functions(self):
        assert "core.tree" in own_imports("core.verification")
        assert "core.loop" in own_imports("decoders.build", anywhere=False)
        assert {"engine.cpu.compiler", "engine.cpu.huge_pages"} <= own_imports("engine.cpu.native")
        assert "engine.gpu.reference" in own_imports("engine.gpu.__init__")
        assert "engine.gpu.reference" not in own_imports("engine.gpu.__init__", anywhere=False)
        assert "torch" in packages("core.sampling", anywhere=False)
        assert "triton" in packages("engine.gpu.attention", anywhere=False)

    def test_passes_over_imports_for_type_checkers_at_the_top(self):
        assert "core.loop" in own_imports("__init__")
        assert "core.loop" not in own_imports("__init__", anywhere=False)

    def test_follows_imports(self):
        assert {"core.loop", "core.protocols", "core.tree", "util.errors"} <= executed("core.loop")
        assert "torch" in {p for m in executed("core.loop") for p in packages(m, anywhere=False)}
        assert "util.errors" in executed("cli.main")

    def test_looks_into_branches_but_not_into_functions(self):
        source = """
            if True:
                import one
            else:
                import two
            try:
                import three
            except ImportError:
                import four
            class A:
                import five
                def f(self):
                    import six
            if TYPE_CHECKING:
                import seven
        """
        lines = [line[12:] for line in source.splitlines()]
        top = statements_at_the_top(ast.parse("\n".join(lines)))
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        assert names == {"one", "two", "three", "four", "five"}

    def test_notices_a_circle(self):
        assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}).keys() == {"a", "b", "c"}
        assert not cycles({"a": {"b"}, "b": {"c"}, "c": set()})

    def test_counts_a_room_above_as_forbidden(self):
        assert FLOOR["core"] < FLOOR["engine"] < FLOOR["drafts"] < FLOOR["decoders"]
        assert FLOOR["decoders"] < FLOOR["benchmark"] < FLOOR["lossless"] < FLOOR["cli"]
        assert "training" not in BESIDE.get("decoders", set()) | BESIDE.get("distill", set())
