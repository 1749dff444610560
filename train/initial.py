"""Where a run begins: its tokenizer and `init_from`, a model in Hugging Face form or an earlier run, with what changes.

With adapters the base is read from `init_from` at every start, so a run must notice when another model stands there.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from qwen3_jax.checkpoints.files import read_entries, resolve_checkpoint
from qwen3_jax.checkpoints.load import from_pretrained
from qwen3_jax.checkpoints.save import staged
from qwen3_jax.config import ModelConfig
from qwen3_jax.files import write_json
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params
from qwen3_jax.paths import pocket_path
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from qwen3_jax.train.config import TrainConfig
from qwen3_jax.train.data import sample_texts, world
from qwen3_jax.train.tokenizer import save_tokenizer, train_tokenizer

# Keys of config.json that leave every parameter as it is.
CHANGEABLE = frozenset(
    "rope_theta rope_scaling max_position_embeddings router_aux_loss_coef rms_norm_eps num_experts_per_tok "
    "norm_topk_prob".split()
)
GENERATION = "generation_config.json"
BASE = "base.json"  # in run_dir
_SAMPLE = 4096  # bytes of each tensor that the digest reads


def source_of(init_from: str) -> Path:
    """The directory in Hugging Face form that `init_from` means: itself, a hub's snapshot, or an earlier run's export.

    Raises:
      FileNotFoundError: there is none; or a run that has not exported its model yet.
    """
    run_dir = Path(init_from).expanduser()
    if (run_dir / "checkpoints").is_dir() and not (run_dir / "config.json").exists():
        if (run_dir / "adapter").is_dir():
            raise FileNotFoundError(
                f"init_from must be a model, got {init_from}, which trained adapters: merge them (qwen3-jax convert "
                f"BASE DIR --adapter {run_dir / 'adapter'}) and set init_from=DIR"
            )
        if not (run_dir / "model" / "config.json").exists():
            raise FileNotFoundError(
                f"init_from must be a run that is done, got {init_from} without a model: finish it, or "
                f"export a step of it (qwen3-jax export {init_from} DIR) and set init_from=DIR"
            )
        return run_dir / "model"
    return resolve_checkpoint(init_from)


def resolve(config: TrainConfig, base: Mapping[str, Any] | None = None) -> TrainConfig:
    """`config` with the whole of its model's config.json in `model`; as it is without `init_from`.

    Args:
      base: the config.json that `model` changes; None reads that of `init_from`.

    Raises:
      FileNotFoundError: as `source_of`.
      ValueError: `model` changes a key that decides what parameters there are; it is named.
    """
    if not config.init_from:
        return config
    if base is None:
        base = ModelConfig.from_file(source_of(config.init_from) / "config.json").to_hf()
    for key, value in config.model.items():
        if key not in CHANGEABLE and value != base.get(key):
            raise ValueError(
                f"model.{key} must be {base.get(key)!r} as in init_from, got {value!r}: with init_from only "
                f"{', '.join(sorted(CHANGEABLE))} can change"
            )
    return dataclasses.replace(config, model={**base, **config.model})


def load_initial(config: TrainConfig, model: Qwen3, mesh: Mesh | None) -> Params:
    """The parameters of `init_from` as float32, each slice straight onto its device; a base that stays frozen is in the
    dtype of the activations."""
    dtype = jnp.float32 if model.lora is None else jnp.dtype(config.dtype)
    _, params = from_pretrained(source_of(config.init_from), dtype, mesh, model.layout, config.mesh.table)
    return params


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
        # What an adapter names as its base: a directory in Hugging Face form where init_from is a run, else a hub's id.
        base = str(directory) if Path(init_from).expanduser().exists() else init_from
        write_json(path, {"init_from": init_from, "base": base, "sha256": digest})
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


def make_tokenizer(directory: Path, config: TrainConfig) -> Tokenizer:
    """The run's tokenizer: `tokenizer.path`'s, else that of `init_from`, else one trained on the data's own text; taken
    at the first start, read back at later ones."""
    write_tokenizer(directory, config)
    return load_tokenizer(directory)


def write_tokenizer(directory: Path, config: TrainConfig) -> None:
    """Puts the run's tokenizer into `directory` where there is none yet.

    Raises:
      FileNotFoundError: `tokenizer.path` is none.
      ValueError: a tokenizer with more tokens than the model, or sources without text to make one from.
    """
    if (directory / "tokenizer_config.json").exists():
        return
    origin = config.tokenizer.path or (source_of(config.init_from) if config.init_from else "")
    if not origin:
        _train_tokenizer(directory, config)
        return
    tok = load_tokenizer(origin)
    size = config.model.get("vocab_size", 0)
    if tok.vocab_size > size:
        raise ValueError(
            f"the tokenizer of {origin} must have at most model.vocab_size={size} tokens, got {tok.vocab_size}: take "
            "another, or a larger model"
        )
    with staged(directory) as stage:
        tok.save(stage)
        if (Path(origin) / GENERATION).is_file():  # its sampling defaults go with the model
            shutil.copyfile(Path(origin) / GENERATION, stage / GENERATION)


def _train_tokenizer(directory: Path, config: TrainConfig) -> None:
    settings = config.tokenizer
    texts: Iterator[str]
    if config.data.sources:
        texts = sample_texts(config.data, settings.corpus_size, config.seed)
    else:
        texts = world().texts(config.data, settings.corpus_size, config.seed)
    bpe = train_tokenizer(texts, settings.vocab_size)
    template = (pocket_path() / "chat_template.jinja").read_text(encoding="utf-8")
    with staged(directory) as stage:
        save_tokenizer(bpe, stage, template)
