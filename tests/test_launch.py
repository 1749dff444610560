"""Mesh files, launch files and guides: every one loads, and every command of this project in them would be accepted."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import jax
import pytest
import yaml

from qwen3_jax.cli.options import config_file, read_mesh
from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.placement import place
from qwen3_jax.releases import load_model_config
from qwen3_jax.sharding import MESH_AXES, axes_of, parse_mesh
from qwen3_jax.train.config import load_config
from tests.support import REPO

MESHES = sorted((REPO / "configs" / "mesh").glob("*.yaml"))
LAUNCH = sorted((REPO / "configs" / "launch").iterdir())
GUIDES = sorted((REPO / "docs" / "guides").glob("*.md"))
DEVICES = {  # what the launch file asks for; and the hosts
    "cloud-tpu-pod.sh": (256, 64),
    "xpk.sh": (256, 64),
    "gke-jobset.yaml": (256, 64),
    "slurm.sbatch": (16, 2),
    "skypilot.yaml": (16, 2),
}


COMMANDS = "generate chat train plan inspect convert tokenize export corpus annotate mixture ablate".split()


def commands(path: Path) -> list[list[str]]:
    """The words after `qwen3-jax` of each of this project's commands in a file, shell variables at their defaults."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    if path.name == "gke-jobset.yaml":
        job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        text = job["containers"][0]["args"][0]
    for name, default in re.findall(r"^(\w+)=\$\{\w+:-(.*)\}$", text, flags=re.MULTILINE):
        text = text.replace(f"${name}", default)
    text = (
        re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$CONFIG", "configs/train/pocket.yaml").replace("\\$", "$")
    )
    found = []
    for match in re.finditer(rf"(?:^|[\s'\"/])qwen3-jax ((?:{'|'.join(COMMANDS)}) [^\n]*)", text):
        words = shlex.shlex(match[1].split("'")[0], posix=True, punctuation_chars=True)
        words.whitespace_split = True
        line: list[str] = []
        try:
            for word in words:
                if re.fullmatch(r"[|&;<>()]+", word):
                    break
                line.append(word)
        except ValueError:  # the quotation mark that closes the command this one stands in
            line = shlex.split(match[1].rpartition('"')[0])
        found.append(line)
    return found


def accepted(words: list[str]):
    module = importlib.import_module(f"qwen3_jax.cli.{words[0]}")
    return module.parser().parse(words[1:])


def abstract(sizes: dict[str, int]) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh(tuple(sizes[axis] for axis in MESH_AXES), MESH_AXES)


def check_training(args, devices: int, hosts: int) -> None:
    """The configuration, with what replaces its values, lies on so many devices."""
    config = load_config(config_file("train", args.config), args.overrides)
    mesh = config.mesh if args.mesh is None else read_mesh(args.mesh)
    sizes = mesh.resolve(devices)
    placement = place(ModelConfig.from_hf(config.model), abstract(sizes), mesh.table)
    ways = 1
    for axis in axes_of("batch", placement.rules):
        ways *= sizes[axis]
    assert config.data.rows % ways == 0
    assert config.data.streams % hosts == 0


@pytest.mark.parametrize("path", MESHES, ids=lambda path: path.stem)
def test_a_mesh_file_lays_its_model_on_its_devices(path):
    text = path.read_text(encoding="utf-8")
    devices = int(re.search(r"^# (\d+) devices?\b", text, re.MULTILINE)[1])
    mesh = parse_mesh(str(path))
    sizes = mesh.resolve(devices)
    args = accepted(shlex.split(text.splitlines()[0].removeprefix("# qwen3-jax ")))
    assert read_mesh(args.mesh) == mesh
    if getattr(args, "config", None):
        check_training(args, devices, 1)
    else:
        model = load_model_config(args.model.rpartition("/")[2].lower())
        placement = place(model, abstract(sizes), mesh.table)
        assert placement.kv_repeats == max(1, sizes["tensor"] // model.num_key_value_heads)
    if getattr(args, "topology", None):
        chips = args.num_slices
        for size in args.topology.partition(":")[2].split("x"):
            chips *= int(size)
        assert chips == devices


@pytest.mark.parametrize("path", [*LAUNCH, *GUIDES], ids=lambda path: path.name)
def test_every_command_is_accepted(path):
    found = commands(path)
    for words in found:
        args = accepted(words)
        if getattr(args, "mesh", None):
            read_mesh(args.mesh)
        if words[0] == "train" and path.name in DEVICES:
            check_training(args, *DEVICES[path.name])
    assert found or path.name in ("Dockerfile", "skypilot.md", "gke.md")


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.name)
def test_a_launch_file_can_be_read(path):
    first = path.read_text(encoding="utf-8").splitlines()[:2]
    assert any(path.name in line for line in first)
    if path.suffix == ".yaml":
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
    elif path.suffix in (".sh", ".sbatch"):
        subprocess.run(["bash", "-n", path], check=True)


def test_the_jobset_has_a_pod_for_every_host():
    path = REPO / "configs" / "launch" / "gke-jobset.yaml"
    job = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    chips, hosts = DEVICES[path.name]
    assert job["parallelism"] == job["completions"] == hosts
    assert container["resources"]["limits"]["google.com/tpu"] * hosts == chips


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_a_guide_points_at_what_exists(path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert not [link for link in links if not (path.parent / link).exists()]
    assert not [name for name in re.findall(r"configs/launch/[\w.-]+\w", text) if not (REPO / name).exists()]
    if path.stem in ("cloud-tpu-pod", "gke", "slurm", "skypilot"):
        assert "Not run on this hardware" in text
