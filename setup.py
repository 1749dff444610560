"""Build of qwen3-jax. Ranges live here; `constraints.txt` pins what `make` installs."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

RUNTIME = [
    "jax>=0.10,<0.13",
    "flax>=0.12.8,<0.13",
    "grain>=0.2.15,<0.3",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "tensorstore>=0.1.74",  # orbax's; mended in train/checkpoints.py
    "jaxtyping>=0.3.7",
    "jinja2>=3.1.6",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "pyyaml>=6.0",
    "rich>=14.0",
    "scipy>=1.13",
    "sentencepiece>=0.2",
    "tokenizers>=0.22",
]

# torch is the reference that the parity tests compare with. On Linux PyPI has only the CUDA build of it (gigabytes) for
# Python 3.12 and later: install the CPU wheel that PyTorch's own site offers, or go without and those tests skip.
# peft, the reference of the low-rank adapters, would pull torch in by itself: the same marker.
HAS_CPU_TORCH = "python_version < '3.12' or sys_platform != 'linux'"
TORCH = f"torch>=2.6; {HAS_CPU_TORCH}"
PEFT = f"peft>=0.19; {HAS_CPU_TORCH}"

# Parquet; JSONL, text and ArrayRecord need nothing more. `hf:` sources use `datasets` where it is installed: it brings
# many packages of its own, so no extra asks for it.
DATA = ["pyarrow>=20.0"]
HUB = ["huggingface_hub>=1.0,<3.0"]
PLOT = ["matplotlib>=3.9"]
LANGUAGE = ["py3langid>=0.4,<0.5"]  # the annotator of that name
TENSORBOARD = ["tensorboardX>=2.6"]  # writes event files without TensorBoard itself and its server
WANDB = ["wandb>=0.19"]
# The TPU's compiler, without a TPU: plans and `make test-tpu`. jax and libtpu are released in pairs, pinned in
# constraints.txt; the wheel takes 700 MB on disk, so nothing else asks for it.
TPU_PLAN = ["libtpu>=0.0.42,<0.0.51; sys_platform == 'linux'"]
# XLA's CUDA compiler and the assembler it calls, without a GPU: plans and `make test-gpu-plan`. In a separate
# environment: where the plugin is, JAX looks for a GPU. The wheels take 600 MB on disk.
GPU_PLAN = [
    "jax-cuda12-plugin>=0.10,<0.13; sys_platform == 'linux'",
    "nvidia-cuda-nvcc-cu12>=12.8,<13; sys_platform == 'linux'",
]
TEST = [
    *DATA,
    *HUB,
    *LANGUAGE,
    *PLOT,
    *TENSORBOARD,
    "beartype>=0.20",
    "protobuf>=5",
    "psutil>=6.0",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "safetensors>=0.6",
    "setuptools>=77",
    "transformers>=5.0,<6.0",
    TORCH,
    PEFT,
]
DEV = [*TEST, "mypy>=1.15", "pre-commit>=4.0", "ruff>=0.12", "types-PyYAML>=6.0"]

# What is installed as a part of `qwen3_jax` and stands beside it: package -> folder.
BESIDE = ("sharding", "infer", "train", "configs")
PARTS = {
    f"qwen3_jax.{package}": package.replace(".", "/")
    for name in BESIDE
    for package in [name, *(f"{name}.{inner}" for inner in find_packages(name))]
}

setup(
    name="qwen3-jax",
    version="0.1.0",
    description="Qwen3 in JAX and Flax: the same code on a laptop, in Colab and on a TPU pod",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # One package is installed. `sharding/`, `infer/`, `train/` and `configs/` stand at the top of the checkout; the
    # links in `qwen3_jax/` are for Python, mypy and editors there. A build takes the folders and needs no links.
    packages=[*find_packages(include=["qwen3_jax*"], exclude=[f"qwen3_jax.{name}*" for name in BESIDE]), *PARTS],
    package_dir=PARTS,
    package_data={
        "qwen3_jax": ["pocket/**/*"],
        "qwen3_jax.configs": ["**/*.yaml"],
        "qwen3_jax.train": ["pocket/*.yaml"],
    },
    install_requires=RUNTIME,
    extras_require={
        "cuda": ["jax[cuda]"],
        "tpu": ["jax[tpu]"],
        "tpu-plan": TPU_PLAN,
        "gpu-plan": GPU_PLAN,
        "data": DATA,
        "hub": HUB,
        "plot": PLOT,
        "language": LANGUAGE,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["qwen3-jax = qwen3_jax.cli:main"]},
)
