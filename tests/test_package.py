"""One package, `qwen3_jax`, however it is installed: names in the user's folder never stand in its way."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import REPO
from tests.train.ablate.studies import write_study

FOLDERS = ("sharding", "infer", "train", "configs")  # beside qwen3_jax, where links lead
TRAPS = (
    "train.py infer/__init__.py sharding.py qwen3.py yaml.py network.py text.py experts.py configs/train/tiny.py "
    "jax/__init__.py flax.py kernels/__init__.py checkpoints.py"
).split()
SHOW = """
import json
from qwen3_jax import infer, sharding, train
import qwen3_jax.cli, qwen3_jax.paths
packages = (qwen3_jax, infer, sharding, train)
missing = [name for package in packages for name in getattr(package, "__all__", []) if not hasattr(package, name)]
print(json.dumps([missing, [p.__file__ for p in packages] + [str(qwen3_jax.paths.configs_path())]]))
"""


def copy_checkout(target: Path, *, symlinks: bool = True) -> Path:
    """The packages and what a build needs; without `symlinks` each link is the text file that git writes instead."""
    for name in ("qwen3_jax", *FOLDERS):
        shutil.copytree(REPO / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, target / name)
    for name in FOLDERS if not symlinks else ():
        (target / "qwen3_jax" / name).unlink()
        (target / "qwen3_jax" / name).write_text(f"../{name}")
    return target


def folder_of_traps(directory: Path, names: list[str]) -> Path:
    """A user's folder whose modules end the program that imports them."""
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("raise SystemExit(f'{__file__} is the user\\'s')\n")
    return directory


def python(*words: object, cwd: Path, path: Path | None = None) -> str:
    """What a program of this Python prints, run in a user's folder."""
    environment = {**os.environ, "PYTHONPATH": "" if path is None else str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *map(str, words)]
    run = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def imported_from(home: Path, output: str) -> bool:
    """Whether every public name exists, and the packages and the configs are those under `home`."""
    missing, files = json.loads(output)
    assert missing == []
    return all(Path(file).is_relative_to(home) and Path(file).exists() for file in files)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("source"))


def build(source: Path, out: Path, kind: str) -> Path:
    python("-c", f"from setuptools import build_meta; build_meta.{kind}({str(out)!r})", cwd=source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build(source, tmp_path_factory.mktemp("wheel"), "build_wheel")


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """Where the wheel is installed, with the command in bin/."""
    target = tmp_path_factory.mktemp("site")
    python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def test_the_wheel_holds_every_module_config_and_file_of_the_pocket_model(wheel):
    archive = zipfile.ZipFile(wheel)
    shipped = set(archive.namelist())
    assert {name.split("/")[0] for name in shipped} == {"qwen3_jax", "qwen3_jax-0.1.0.dist-info"}
    assert archive.read("qwen3_jax-0.1.0.dist-info/top_level.txt").split() == [b"qwen3_jax"]
    expected = {path.relative_to(REPO).as_posix() for path in (REPO / "qwen3_jax").rglob("*.py")}
    expected |= {f"qwen3_jax/{path.relative_to(REPO).as_posix()}" for n in FOLDERS for path in (REPO / n).rglob("*.py")}
    expected |= {f"qwen3_jax/{path.relative_to(REPO).as_posix()}" for path in (REPO / "configs").rglob("*.yaml")}
    pocket = {
        path.relative_to(REPO).as_posix() for path in (REPO / "qwen3_jax" / "pocket").rglob("*") if path.is_file()
    }
    assert {f"qwen3_jax/pocket/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")} <= pocket
    words = {"qwen3_jax/train/pocket/words.yaml"}
    assert expected | pocket | words == {name for name in shipped if name.startswith("qwen3_jax/")}


@pytest.mark.parametrize("full", [False, True], ids=["empty folder", "folder of traps"])
def test_the_installed_commands_work_in_any_folder(site, full, tmp_path, tmp_path_factory, monkeypatch):
    """Ablations start processes of their own, in the folder of the user."""
    monkeypatch.setenv("QWEN3_JAX_COMPILATION_CACHE_DIR", str(site / "compiled"))  # for both folders
    files = tmp_path_factory.mktemp("files")
    study = write_study(files, grid={"optimizer.learning_rate": [0.01]}, baseline={"optimizer.learning_rate": 0.01},
                        seeds=[0], claims=[], set={"steps": 6, "checkpoint_every": 6})  # fmt: skip
    folder = folder_of_traps(tmp_path, TRAPS) if full else tmp_path

    small = ["steps=2", "checkpoint_every=2"]
    commands = [
        ["demo", "--problems", "1"],
        ["generate", "--prompt", "2 + 2?", "--max-new-tokens", "2", "--thinking-budget", "0"],
        ["train", str(files / "base.yaml"), "run_dir=run", *small],
        ["ablate", str(study), "run_dir=study"],
    ]
    assert "1.7b" in python(
        site / "bin" / "qwen3-jax", "inspect", "--model-config", "qwen3-1.7b", cwd=folder, path=site
    )
    script = site / "bin" / "commands.py"  # one process for all, started as the command is
    script.write_text(f"from qwen3_jax.cli import main\nfor words in {commands}:\n    assert main(words) == 0, words\n")
    python(script, cwd=folder, path=site)
    assert (folder / "run" / "model" / "model.safetensors").is_file()
    assert json.loads((folder / "study" / "table.json").read_text())["cells"][0]["runs"] == {"finished": 1}


def test_a_notebook_imports_the_packages_of_the_wheel(site, tmp_path):
    """The folder of the notebook is the first place where Python looks."""
    traps = [
        name for name in TRAPS if name.split("/")[0] not in ("yaml.py", "jax", "flax.py")
    ]  # these are its own fault
    assert imported_from(site, python("-c", SHOW, cwd=folder_of_traps(tmp_path, traps), path=site))


def test_an_editable_install_maps_one_name_and_finds_the_rest(source, tmp_path_factory, tmp_path):
    """The finder that setuptools installs, in place of the one of this environment."""
    editable = tmp_path_factory.mktemp("editable")
    zipfile.ZipFile(build(source, tmp_path_factory.mktemp("wheel"), "build_editable")).extractall(editable)
    (finder,) = (path.stem for path in editable.glob("__editable__*.py"))
    program = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')]; "
        f"import {finder} as finder; assert list(finder.MAPPING) == ['qwen3_jax']; finder.install()\n"
    )
    folder = folder_of_traps(tmp_path, ["train.py", "infer/__init__.py", "sharding.py"])
    assert imported_from(source, python("-c", program + SHOW, cwd=folder, path=editable))


@pytest.mark.parametrize("symlinks", [True, False], ids=["links", "no links"])
def test_a_bare_checkout_needs_no_install_and_no_links(symlinks, source, tmp_path_factory, tmp_path):
    """Git writes a link as a text file where the file system has none, as on Windows."""
    checkout = source if symlinks else copy_checkout(tmp_path_factory.mktemp("checkout"), symlinks=False)
    folder = folder_of_traps(tmp_path, ["train.py", "infer/__init__.py", "sharding.py"])
    assert imported_from(checkout, python("-c", SHOW, cwd=folder, path=checkout))
    assert "qwen3-0.6b" in python("-m", "qwen3_jax.cli", "inspect", "--model-config", "qwen3-0.6b", cwd=checkout)
