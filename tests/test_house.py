"""The house rules: which room may import which, one door for each heavy library, and a light command line."""

import ast
import re
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.support.corpus import ROOT
from tests.support.drawing import drawing

# The drawing of docs/architecture.md. A room may import itself and what stands here, and nothing else.
ARROWS = {
    "workflow.run": "workflow.cli",
    "workflow.cli": "advise doctor execute detach fetch jobs run_directory plan images config",
    "workflow.advise": "run_directory plan config",
    "workflow.doctor": "jobs run_directory plan images scheduler config",
    "workflow.execute": "jobs run_directory plan images config",
    "workflow.detach": "jobs run_directory scheduler config",
    "workflow.jobs": "run_directory plan images scheduler config",
    "workflow.run_directory": "plan",
    "workflow.plan": "config",
    "workflow.images": "config",
    "workflow.scheduler": "config",
    "workflow.fetch": "config",
    "workflow.config": "",
    "gnnscale.stages": "report train inference audit data scaling models atoms job machine contract",
    "gnnscale.report": "scaling audit contract schema",
    "gnnscale.train": "data native models atoms machine contract architectures schema",
    "gnnscale.inference": "data models atoms contract",
    "gnnscale.audit": "data atoms contract schema",
    "gnnscale.data": "atoms machine contract schema",
    "gnnscale.scaling": "contract schema",
    "gnnscale.models": "native atoms architectures schema",
    "gnnscale.native": "machine",
    "gnnscale.job": "machine contract schema",
    "gnnscale.contract": "architectures schema",
    "gnnscale.machine": "contract schema",
    "gnnscale.atoms": "schema",
    "gnnscale.architectures": "schema",
    "gnnscale.schema": "",
    "datasets": "gnnscale.stages gnnscale.data gnnscale.atoms gnnscale.contract gnnscale.schema",
}
FROM_WORKFLOW = {"gnnscale.contract", "gnnscale.architectures", "gnnscale.machine", "gnnscale.schema"}
DOORS = {
    "parsl": {"workflow/execute/dag.py", "workflow/execute/parsl_config.py", "workflow/jobs/parsl_provider.py"},
    "deepspeed": {"gnnscale/train/deepspeed_engine.py", "gnnscale/train/process_group.py"},
    "triton": {"gnnscale/models/kernels/triton.py"},
    "adios2": {"gnnscale/data/storage/adios.py"},
    "matplotlib": {"gnnscale/report/figures/style.py"},
    "vesin": {"gnnscale/atoms/neighbors.py"},
    "mpi4py": {"gnnscale/data/storage/node_store.py"},
    "tblite": {"gnnscale/data/generate/potentials.py"},
    "torch_geometric": {"gnnscale/atoms/pyg.py"},
    "h5py": {"gnnscale/data/formats/hdf5.py"},
    "lmdb": {"gnnscale/data/formats/lmdbs.py"},
    "orjson": {"gnnscale/data/formats/lmdbs.py"},
    "ijson": {"gnnscale/data/formats/crystaljson.py"},
    "yaml": {"workflow/config/yaml_file.py", "workflow/cli/output.py"},
}
LIGHT = ("torch", "ase", "numpy", "mpi4py", "matplotlib")  # what nothing under workflow/ imports
SOURCES = [p for folder in ("gnnscale", "workflow", "datasets") for p in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES}


def room_of(module):
    """Return `gnnscale.data` for anything below gnnscale/data/, and `datasets` for a data set's script."""
    parts = module.split(".")
    return parts[0] if parts[0] == "datasets" else ".".join(parts[:2])


def imports(path):
    """Yield every module that a file imports, also inside functions, but not for types alone."""
    for name in drawing().imported(path):
        yield name if name in MODULES else name.rpartition(".")[0] or name


def allowed_from(room):
    own = room.split(".")[0]
    below = {name if "." in name or name == "datasets" else f"{own}.{name}" for name in ARROWS[room].split()}
    return below | {room} | (FROM_WORKFLOW if own == "workflow" else set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_import_is_an_arrow_of_the_drawing(path):
    name = str(path.relative_to(ROOT))
    room = room_of(name.removesuffix(".py").replace("/", "."))
    if path.name == "__init__.py" and path.parent.parent == ROOT:
        assert not [module for module in imports(path) if module.startswith(("gnnscale", "workflow"))]
        return
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in DOORS or name in DOORS[top], f"{name} imports {top}, whose door is {DOORS[top]}"
        if room.startswith("workflow"):
            assert top not in LIGHT, f"{name} imports {top}"
        if top in ("gnnscale", "workflow"):
            assert room_of(module) in allowed_from(room), f"{name} imports {module}: no arrow of the drawing"


def test_every_room_and_arrow_of_the_drawing_exists():
    drawn = {(room, below) for room in ARROWS for below in allowed_from(room) - {room}}
    found = {(room_of(m), room_of(i)) for m, p in MODULES.items() for i in imports(p) if i in MODULES}
    rooms = {room for arrow in found for room in arrow}
    assert set(ARROWS) == rooms | {"gnnscale.schema"}
    unused = {
        (a, b)
        for a, b in drawn - found
        if not (a.startswith("workflow") and b.startswith("gnnscale")) and b != "gnnscale.schema"
    }
    assert not unused, f"arrows that nothing uses: {sorted(unused)}"


def find_circle(below):
    """Return the nodes of a circle of imports, or an empty list."""
    done, under_way = set(), []

    def visit(node):
        if node in under_way:
            return [*under_way[under_way.index(node) :], node]
        if node in done:
            return []
        under_way.append(node)
        circle = next(filter(None, map(visit, sorted(below[node]))), [])
        under_way.pop()
        done.add(node)
        return circle

    return next(filter(None, map(visit, sorted(below))), [])


@pytest.mark.parametrize("name", [str, room_of], ids=["modules", "rooms"])
def test_no_circle_of_imports(name):
    below = defaultdict(set)
    for module, path in MODULES.items():
        below[name(module)] |= {name(i) for i in imports(path) if i in MODULES} - {name(module)}
    assert not find_circle(below)
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


# Packages whose files make pairs: an architecture is options and a network, a scheduler options and commands.
PAIRED = [{"gnnscale/architectures", "gnnscale/models"}, {"workflow/config/schedulers", "workflow/scheduler"}]
FOUND_BY_NAME = {  # and the files that import them, for which no import statement stands
    "gnnscale/architectures/registry.py",
    "gnnscale/models/registry.py",
    "workflow/config/scheduler_kinds.py",
    "workflow/scheduler/registry.py",
}


@pytest.mark.parametrize("package", ["gnnscale", "workflow"])
def test_no_file_stem_is_used_twice_in_a_package(package):
    by_stem = defaultdict(list)
    for path in SOURCES:
        name = path.relative_to(ROOT)
        if name.parts[0] == package and path.name != "__init__.py":
            by_stem[path.stem].append(name)
    twice = {stem: paths for stem, paths in by_stem.items() if len(paths) > 1}
    assert not {stem for stem, paths in twice.items() if {str(path.parent) for path in paths} not in PAIRED}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_hash_of_the_code_sees_every_import(path):
    """Keys follow `import` statements with absolute names; a relative or a dynamic import would be missed."""
    if str(path.relative_to(ROOT)) in FOUND_BY_NAME:
        return  # the plan adds the two files of the chosen architecture to the key; no result depends on a scheduler
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"line {node.lineno}: a relative import"
        name = getattr(node, "id", getattr(node, "attr", ""))
        assert name not in ("import_module", "__import__"), f"line {node.lineno}: {name}"


def test_a_scheduler_is_named_in_its_own_two_files_alone():
    """A new one is two files: no other asks which it is, by its name in quotes or by its class."""
    kinds = {path.stem for path in SOURCES if path.parent == ROOT / "workflow" / "config" / "schedulers"} - {"__init__"}
    assert {"slurm", "pbs"} <= kinds
    for path in SOURCES:
        name = path.relative_to(ROOT)
        if name.parts[0] == "datasets" or (path.stem in kinds and str(path.parent.relative_to(ROOT)) in PAIRED[1]):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in kinds:
                raise AssertionError(f"{name}:{node.lineno} names {node.value!r}")
            imported = getattr(node, "module", None) or ""
            assert not imported.startswith("workflow.config.schedulers."), f"{name}:{node.lineno} imports {imported}"


FRAGMENT = re.compile(r"(Of|What|Whether|Who|That|How|Which)\b")


def test_docstrings_are_sentences_and_no_fragments():
    """Ruff checks their form; a verb or a noun at their beginning it cannot know."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                first = (ast.get_docstring(node) or "").partition("\n")[0]
                assert not FRAGMENT.match(first), f"{path.relative_to(ROOT)}: {first}"
                assert "TODO" not in first, path


VERBS = ["--help", "plan", "plan --site polaris", "status", "sites list", "explain report/all", "doctor --no-job"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_stays_light(verb, tmp_path):
    """Neither torch nor Parsl, nor anything as heavy, for any verb that does not run stages."""
    argv = [*verb.split(), "--root", str(tmp_path)] if verb != "sites list" else verb.split()
    program = f"""
import runpy, sys
sys.argv = {["workflow/run.py", *argv]!r}
try:
    runpy.run_path({str(ROOT / "workflow" / "run.py")!r}, run_name="__main__")
except SystemExit:
    pass
heavy = {{"torch", "parsl", "numpy", "ase", "deepspeed", "adios2", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_module_is_called_as_a_library_is():
    """workflow/ may be first on the path, and datasets/ lies at the top."""
    ours = {p.stem for p in (ROOT / "workflow").glob("*")} - {"__init__", "__pycache__"}
    assert not ours & (set(sys.stdlib_module_names) | {"parsl", "torch", "yaml", "rich"})
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_no_path_of_a_machine_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed:
        if name.endswith((".py", ".md", ".yaml", ".toml", "Makefile", "run", ".sh", ".txt")):
            text = (ROOT / name).read_text()
            for place in ("/" + "work/", "/" + "root/", "/" + "home/"):
                assert place not in text, f"{name} names {place}"
