"""The house rules: who may import whom, one door for each heavy library, and a light command line."""

import ast
import subprocess
import sys

import pytest

from tests.corpus import ROOT

DOORS = {
    "parsl": {"workflow/dag.py", "workflow/executors.py", "workflow/provider.py"},
    "deepspeed": {"gnnscale/train/engine.py"},
    "triton": {"gnnscale/models/fused.py"},
    "adios2": {"gnnscale/data/shards.py"},
    "matplotlib": {"gnnscale/report/drawing.py"},
    "vesin": {"gnnscale/neighbors.py"},
    "mpi4py": {"gnnscale/data/store.py"},
    "tblite": {"gnnscale/data/potentials.py"},
    "torch_geometric": {"gnnscale/pyg.py"},
    "h5py": {"gnnscale/data/hdf5.py"},
    "lmdb": {"gnnscale/data/lmdbs.py"},
    "orjson": {"gnnscale/data/lmdbs.py"},
    "ijson": {"gnnscale/data/crystaljson.py"},
    "yaml": {"workflow/yamlfile.py", "workflow/show.py"},
}
SHARED = {  # all that login node and job have in common
    "gnnscale.schema", "gnnscale.specs", "gnnscale.architectures", "gnnscale.memory", "gnnscale.files",
    "gnnscale.sources", "gnnscale.place",
}  # fmt: skip
SOURCES = [p for folder in ("gnnscale", "workflow", "datasets") for p in sorted((ROOT / folder).rglob("*.py"))]


def imports(path):
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ({f"{node.module}.{a.name}" for a in node.names} if node.module == "gnnscale" else {node.module})


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_picture(path):
    name = str(path.relative_to(ROOT))
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in DOORS or name in DOORS[top], f"{name} imports {top}, whose door is {DOORS[top]}"
        if name.startswith("workflow/"):
            assert top not in ("torch", "ase", "numpy")
            assert top != "gnnscale" or module in SHARED, f"{name} imports {module}"
        else:
            assert top != "workflow", f"{name} imports {module}: arrows go down only"


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
    ours = {p.stem for p in (ROOT / "workflow").glob("*.py")} - {"__init__"}
    assert not ours & (set(sys.stdlib_module_names) | {"parsl", "torch", "yaml", "rich"})
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_no_path_of_a_machine_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed:
        if name.endswith((".py", ".md", ".yaml", ".toml", "Makefile", "run", ".sh", ".txt")):
            text = (ROOT / name).read_text()
            for place in ("/" + "work/", "/" + "root/", "/" + "home/"):
                assert place not in text, f"{name} names {place}"
