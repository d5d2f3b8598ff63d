"""The floors of the house: imports go down only, and the rooms that promise to hold no torch hold none."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lora_trainer"
FLOORS = [
    {
        "errors",
        "events",
        "control",
        "registry",
        "messages",
        "files",
        "file_hashes",
        "gc_pause",
        "install_command",
        "parsing",
        "path_kinds",
        "assets",
        "__init__",
    },
    {"config", "jobs", "models"},
    {"adapters", "data", "loss", "optim", "host"},
    {"train", "network_tools"},
    {"prep", "wizard", "grid", "api"},
    {"ui", "cli"},
    {"__main__"},
]
HOST_MODULES = {"modules", "modules_forge", "backend", "launch"}
LAZY = {"diffusers", "transformers", "accelerate", "bitsandbytes"}
ONLY_IN = {"gradio": {"ui"}, "fastapi": {"api"}}
TORCH_FREE = [
    "config.build",
    "jobs.job",
    "wizard.facts",
    "events",
    "control",
    "errors",
    "registry",
    "train.planning.plan",
    "data.sources.scan",
    "data.buckets",
]


MOST_MODULES = 15
"""In one folder, without its __init__: more cannot be taken in at a glance. No folder is excepted."""
EMPTY_NAMES = {"misc", "util", "utils", "helper", "helpers", "stuff", "thing", "things", "common", "tools", "base_utils", "manager_utils"}
"""Names of modules and folders that say nothing of what is inside."""


def files() -> Iterator[Path]:
    yield from sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if name in rooms), 0)


def imports(path: Path, *, top_only: bool = False) -> Iterator[tuple[str, bool]]:
    """Names that a file imports, and whether only for the type checker."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    within = {inner for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if top_only and node in within:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in checking) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "lora_trainer":
                yield from ((f"lora_trainer.{alias.name}", node in checking) for alias in node.names)
            else:
                yield node.module, node in checking


def test_every_room_has_its_floor():
    homeless = {room(path) for path in files()} - set().union(*FLOORS)
    assert homeless == set()


def test_no_folder_holds_more_modules_than_one_takes_in():
    counts = Counter(path.parent for path in files() if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_every_module_is_named_by_what_is_inside():
    names = {part for path in files() for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert names & EMPTY_NAMES == set()


def test_imports_only_go_down():
    upward = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        for name, checking in imports(path)
        if name.startswith("lora_trainer.") and not checking and floor(name.split(".")[1]) > floor(room(path))
    ]
    assert upward == []


def test_rooms_of_one_floor_do_not_import_each_other_in_a_circle():
    needs: dict[str, set[str]] = {}
    for path in files():
        own = room(path)
        for name, checking in imports(path):
            other = name.split(".")[1] if name.startswith("lora_trainer.") else own
            if other != own and not checking and floor(other) == floor(own) > 0:
                needs.setdefault(own, set()).add(other)
    for start in needs:
        reached, waiting = set(), [start]
        while waiting:
            for other in needs.get(waiting.pop(), ()):
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
        assert start not in reached, f"{start} imports itself by way of {reached}"


def test_no_files_import_each_other_in_a_circle_not_even_for_the_type_checker():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files() if path.name != "__init__.py"}
    needs = {}
    for module, path in modules.items():
        froms = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
        named = {name for node in froms for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))}
        needs[module] = named & modules.keys()
    TopologicalSorter(needs).prepare()  # raises CycleError, which names them


def test_the_host_is_named_only_behind_its_wall():
    outside = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        for name, _ in imports(path)
        if name.split(".")[0] in HOST_MODULES and not path.relative_to(PACKAGE).as_posix().startswith(("host/a1111", "host/forge"))
    ]
    assert outside == []


@pytest.mark.parametrize(("package", "rooms"), ONLY_IN.items())
def test_web_packages_stay_in_their_rooms(package: str, rooms: set[str]):
    assert [
        str(path.relative_to(ROOT))
        for path in files()
        for name, _ in imports(path)
        if name.split(".")[0] == package and room(path) not in rooms
    ] == []


def test_heavy_packages_are_imported_inside_functions():
    assert [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files()
        for name, checking in imports(path, top_only=True)
        if name.split(".")[0] in LAZY and not checking
    ] == []


def test_no_peft_and_no_pipeline():
    named = [name for path in files() for name, _ in imports(path)]
    assert not any(name.startswith(("peft", "diffusers.pipelines", "diffusers.training_utils")) for name in named)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_light_room_leaves_torch_out(module: str):
    code = f"import lora_trainer.{module}, sys; sys.exit('torch' in sys.modules or 'gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_whole_config_is_named_only_where_runs_are_put_together():
    allowed = (
        "config/",
        *(f"train/{name}.py" for name in ("setup", "trainer", "loop", "inputs/dataset")),
        "train/planning/",
        "wizard/",
        "ui/",
        "cli/",
        "api/",
    )
    strangers = []
    for path in files():
        place = path.relative_to(PACKAGE).as_posix()
        if not place.startswith(allowed) and any(
            isinstance(node, ast.Name) and node.id == "TrainConfig" for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        ):
            strangers.append(place)
    assert strangers == []


def test_only_the_job_and_the_command_line_swallow_any_error():
    broad = []
    for path in files():
        place = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")):
                raised = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                if not raised and not place.startswith(("jobs/job.py", "cli/")):
                    broad.append(f"{place}:{node.lineno}")
    assert broad == []


def test_no_line_of_javascript_is_too_long():
    """ruff measures Python's only."""
    files = sorted((ROOT / "javascript").glob("*.js"))
    lines = [(f"{file.name}:{number}", line) for file in files for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)]
    assert files and [place for place, line in lines if len(line) > 140] == []
