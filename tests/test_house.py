"""The rules of the house: import order, packaging, pins, configs, and checks that are the same everywhere."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import REPO

ORDER = ["sharding", "qwen3_jax", "infer", "train"]  # each may import itself and those before it
MODULES = sorted(path for package in ORDER for path in (REPO / package).rglob("*.py"))  # links are not followed
CONFIGS = sorted((REPO / "configs").rglob("*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imports_of(path: Path) -> list[str]:
    """Dotted names of everything `path` imports, inside functions too."""
    names: list[str] = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


# --- imports -------------------------------------------------------------------------------------------------------


def part_of(name: str) -> str | None:
    """Which of ORDER an imported name belongs to; a public name of `qwen3_jax` belongs to that."""
    words = name.split(".")
    if words[0] != "qwen3_jax":
        return None
    return next((word for word in words[1:2] if word in ("sharding", "infer", "train")), "qwen3_jax")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way_and_nothing_imports_the_command_line(path):
    package = path.relative_to(REPO).parts[0]
    on_top = path.is_relative_to(REPO / "qwen3_jax" / "cli")
    allowed = {None} | set(ORDER if on_top else ORDER[: ORDER.index(package) + 1])
    found = {part_of(name) for name in imports_of(path)}
    assert found <= allowed
    assert not {name.split(".")[0] for name in imports_of(path)} & {"sharding", "infer", "train"}  # nobody's own names
    if not on_top:
        assert not [name for name in imports_of(path) if name.startswith("qwen3_jax.cli")]


# Rooms of a package, from the ground up: a room imports itself and those below it, and no neighbor of its own floor
# (but on the ground floor).
FLOORS = {
    "qwen3_jax": [
        ["config", "config_json", "files", "releases", "paths", "generation_defaults", "compile_cache", "text"],
        ["parameters", "kernels"],
        ["experts"],
        ["network"],
        ["checkpoints", "plans"],
        ["cli"],
    ],
    "qwen3_jax.sharding": [["rules", "platforms"], ["mesh", "constrain", "collectives"], ["ahead_of_time", "launch"]],
}


@pytest.mark.parametrize("package", FLOORS)
def test_no_arrow_runs_up_between_the_rooms(package):
    home = REPO / package.rpartition(".")[2]
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    up = []
    for path in (path for path in MODULES if path.is_relative_to(home)):
        room = path.relative_to(home).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in floor, f"{name_of(path)}: which floor is it on?"
        for name in (name for name in imports_of(path) if name.startswith(f"{package}.")):
            target = name.removeprefix(f"{package}.").split(".")[0]
            beside = target != room and floor.get(target) == floor[room] > 0
            if floor.get(target, 0) > floor[room] or beside:
                up.append(f"{name_of(path)} imports {name}")
    assert up == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_over_300_lines_gives_its_reason_in_its_first_line(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300 or "300 lines" in lines[0], f"{len(lines)} lines, and the first one does not say why"


def test_the_network_has_no_branch_for_a_platform():
    """What XLA:CPU needs spelled in its own way is a backend under `kernels`."""
    for room in ("network", "parameters"):
        for path in (REPO / "qwen3_jax" / room).rglob("*.py"):
            assert "target_platform" not in path.read_text(encoding="utf-8"), name_of(path)


def test_training_knows_no_pocket_world():
    """`train` names the world of runs without sources; nothing else outside of `train/pocket` imports it."""
    for path in (REPO / "train").rglob("*.py"):
        if path.parent.name != "pocket" and name_of(path) != "train/__init__.py":
            assert not [name for name in imports_of(path) if ".train.pocket" in name], name_of(path)


def test_the_tree_names_its_concepts():
    """Where a reader who has only seen the listing looks for each of these."""
    for name in (
        "qwen3_jax/network/qk_norm.py",
        "qwen3_jax/network/yarn.py",
        "qwen3_jax/kernels/cache_write.py",
        "qwen3_jax/experts/router.py",
        "infer/stop_thinking_text.py",
        "train/data/chat_loss_mask.py",
        "train/checkpoints.py",
        "sharding/rules.py",
    ):
        assert (REPO / name).is_file(), name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_private_or_deprecated_of_jax_is_used(path):
    deprecated = ("jax.experimental.pjit", "jax.experimental.shard_map", "jax.experimental.maps", "jax.interpreters")
    used = imports_of(path) + [ast.unparse(node) for node in nodes_of(path) if isinstance(node, ast.Attribute)]
    assert not [name for name in used if name.startswith(("jax._src", *deprecated))]
    blocks = [item for node in nodes_of(path) if isinstance(node, ast.With) for item in node.items]
    assert "mesh" not in [ast.unparse(item.context_expr) for item in blocks]  # `with jax.set_mesh(mesh):`


# --- dependencies --------------------------------------------------------------------------------------------------


@functools.cache
def setup_arguments() -> dict:
    """What setup.py hands to `setup`, read without building anything."""
    program = (
        "import json, runpy, setuptools; kept = {}; setuptools.setup = lambda **kw: kept.update(kw); "
        "runpy.run_path('setup.py'); print(json.dumps(kept))"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=REPO, check=True, capture_output=True, text=True)
    return yaml.safe_load(out.stdout)


def requirements(*extras: str) -> list[Requirement]:
    arguments = setup_arguments()
    lines = [*arguments["install_requires"], *(line for extra in extras for line in arguments["extras_require"][extra])]
    return [Requirement(line) for line in lines]


def pins() -> list[Requirement]:
    lines = (REPO / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_every_requirement_has_one_pin_inside_its_range(python, platform):
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform}
    active = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate(here)]
    version = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in active}
    assert len(version) == len(active), "a package is pinned twice"
    for requirement in requirements("dev", "tpu-plan"):
        if requirement.marker is None or requirement.marker.evaluate(here):
            if requirement.name == "torch" and python != "3.11":
                continue  # outside Linux it comes from PyPI unpinned
            assert version[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_every_pin_is_exact_and_the_promised_extras_exist():
    assert all(str(pin.specifier).startswith("==") and "*" not in str(pin.specifier) for pin in pins())
    assert {"cuda", "tpu", "tpu-plan", "test", "dev", "hub"} <= setup_arguments()["extras_require"].keys()


DISTRIBUTION = {"orbax": "orbax-checkpoint", "yaml": "pyyaml", "mpl_toolkits": "matplotlib"}


def test_the_packages_import_only_what_setup_declares_and_nothing_is_declared_in_vain():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    extras = ("hub", "language", "plot", "tensorboard", "wandb")
    optional = {canonicalize_name(requirement.name) for requirement in requirements(*extras)}
    outside = {name.split(".")[0] for path in MODULES for name in imports_of(path)} - set(ORDER)
    used = {DISTRIBUTION.get(name, name) for name in outside - set(sys.stdlib_module_names)}
    used = {canonicalize_name(name) for name in used}
    assert used <= declared | optional
    assert declared <= used


# --- what is shipped -----------------------------------------------------------------------------------------------


def test_the_pocket_model_is_small():
    files = [path for path in (REPO / "qwen3_jax" / "pocket").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_config_begins_with_the_command_that_runs_it(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# (qwen3-jax|python -m|kubectl|sky) ", first), first
    assert path.stem in first
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


# --- checks --------------------------------------------------------------------------------------------------------


def test_pre_commit_and_ci_run_the_same_commands():
    config = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    from_hooks = {hook["entry"].removeprefix("make --no-print-directory ") for hook in hooks}
    ci = (REPO / ".ci" / "run").read_text()
    from_ci = set(re.search(r"^for target in (.*); do$", ci, re.M).group(1).split())
    makefile = (REPO / "Makefile").read_text()
    assert from_hooks == {"format", "lint", "types", "test"}
    assert from_ci == from_hooks | {"test-tpu"}  # 210 MB to download: not before every push
    assert all(re.search(rf"^{target}: ", makefile, re.M) for target in from_ci)


def test_ci_fails_when_one_check_fails(tmp_path):
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text((REPO / ".ci" / "run").read_text())
    targets = ("format", "lint", "types", "test", "test-tpu")
    for failing, expected in [("lint", 1), ("test", 1), ("test-tpu", 1), (None, 0)]:
        result = {name: "false" if name == failing else "true" for name in targets}
        (tmp_path / "Makefile").write_text("".join(f"{name}:\n\t@{value}\n" for name, value in result.items()))
        assert subprocess.run(["bash", script], capture_output=True, check=False).returncode == expected


def test_warnings_are_errors_and_shapes_are_checked():
    options = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["filterwarnings"][0] == "error"
    assert "--jaxtyping-packages=qwen3_jax,tests.support.typechecked" in options["addopts"]
