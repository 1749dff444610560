"""Fine-tuning with low-rank adapters: which of them a configuration asks for, and which base they belong to.

Only adapters are trained and checkpointed. The base is read from `init_from` at every start, in the dtype of the
activations, so a run must notice when another model stands there by then.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from qwen3_jax.checkpoints.files import read_entries
from qwen3_jax.checkpoints.staging import write_json
from qwen3_jax.config import ModelConfig
from qwen3_jax.parameters.adapters import Lora, make_lora, with_adapters
from qwen3_jax.train.settings import LoraConfig

_SAMPLE = 4096  # bytes of each tensor that the digest reads
BASE = "base.json"  # in run_dir


def lora_of(config: LoraConfig | None, architecture: ModelConfig) -> Lora | None:
    """The adapters of a run; None where all parameters are trained.

    Raises:
      ValueError: as `qwen3_jax.parameters.adapters.make_lora`; the line begins with "lora.".
    """
    if config is None:
        return None
    try:
        return make_lora(architecture, **dataclasses.asdict(config))
    except ValueError as error:
        raise ValueError(f"lora.{error}") from None


def joined(params: Any, frozen: Any) -> Any:
    """What is trained and the frozen base, as the parameters of one model."""
    return params if frozen is None else with_adapters(frozen, params)


def base_digest(directory: Path) -> str:
    """SHA-256 of a checkpoint's tensor names, dtypes, shapes and the first 4 KiB of each tensor.

    Another model, another dtype or one that was trained on differs; reading all of a large model at every start would
    take as long as loading it.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(read_entries(directory).items()):
        digest.update(json.dumps([name, entry.dtype_name, entry.shape]).encode())
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            digest.update(file.read(min(_SAMPLE, entry.nbytes)))
    return digest.hexdigest()


def claim_base(run_dir: Path, init_from: str, directory: Path) -> None:
    """Notes the base of a run at its first start, and requires the same one at later starts.

    Args:
      init_from: as the user wrote it.
      directory: where that is.

    Raises:
      ValueError: another model stands there now.
    """
    path, digest = run_dir / BASE, base_digest(directory)
    if not path.exists():
        beside = path.with_name(f"{BASE}.tmp")
        # What an adapter names as its base: a directory in Hugging Face form where init_from is a run, else a hub's id.
        base = str(directory) if Path(init_from).expanduser().exists() else init_from
        write_json(beside, {"init_from": init_from, "base": base, "sha256": digest})
        beside.replace(path)
        return
    noted = json.loads(path.read_text(encoding="utf-8"))
    if noted["sha256"] != digest:
        raise ValueError(
            f"init_from must be the model that the adapters of {run_dir} were begun on ({noted['init_from']}, "
            f"{noted['sha256'][:12]}), got {digest[:12]} in {directory}: restore it, or choose another run_dir"
        )


def noted_base(run_dir: Path) -> str:
    """What the adapters of a run name as their base: `save_adapters`' `base`."""
    base: str = json.loads((run_dir / BASE).read_text(encoding="utf-8"))["base"]
    return base
