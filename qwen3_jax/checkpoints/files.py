"""The files of a checkpoint: a directory or a hub id to a directory, a directory to its tensors by name."""

import re
from pathlib import Path

from qwen3_jax.checkpoints.safetensors import INDEX, TensorEntry, read_header
from qwen3_jax.config import read_json_object

HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_checkpoint(path_or_hub_id: str | Path) -> Path:
    """The directory of a checkpoint; an id such as "Qwen/Qwen3-0.6B" is fetched from the hub, with its progress bar.

    Raises:
      FileNotFoundError: no such directory, and no such repository or no way to reach it.
      ValueError: a file where the directory should be.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"a checkpoint must be a directory, got the file {path}: give the directory it lies in")
    if not isinstance(path_or_hub_id, str) or not _HUB_ID.fullmatch(path_or_hub_id):
        raise FileNotFoundError(
            f"a checkpoint must be a directory or a hub id, got {str(path_or_hub_id)!r}: no such directory"
        )
    return _download(path_or_hub_id)


def _download(hub_id: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise FileNotFoundError(
            f"{hub_id} is no directory here, and fetching it needs huggingface_hub: pip install 'qwen3-jax[hub]'"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=HUB_PATTERNS))
    except errors.GatedRepoError:
        reason = "the repository is gated: accept its terms and run `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "the hub has no such repository (or it is private): check the id, or run `hf auth login`"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "the hub can not be reached and it was not fetched before: go online, or give a local directory"
    except Exception as error:  # one line whatever the transport raised
        reason = f"fetching it failed with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise FileNotFoundError(f"{hub_id} is no directory here, and {reason}")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: `model.safetensors`, else the shards that the index names.

    Raises:
      FileNotFoundError: none, or a shard that the index names is missing.
      ValueError: a damaged index.
    """
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    if (directory / INDEX).is_file():
        files = [directory / name for name in sorted(set(read_index(directory).values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{directory} must hold the {len(files)} files that {INDEX} names, {len(missing)} missing: "
                f"{shorten(missing)}: fetch the checkpoint again"
            )
        return files
    raise FileNotFoundError(f"{directory} must hold model.safetensors or {INDEX}, got {_what_else(directory)}")


def _what_else(directory: Path) -> str:
    shards = sorted(file.name for file in directory.glob("*.safetensors"))
    if shards:
        return f"{shorten(shards)} without an index: fetch {INDEX}"
    if any(directory.glob("pytorch_model*.bin")):
        return "pytorch_model.bin, a pickle: convert it with transformers' save_pretrained(safe_serialization=True)"
    if any(directory.glob("*.gguf")):
        return "a GGUF file: give the original checkpoint in Hugging Face form"
    return "no weights: fetch the checkpoint again"


def read_index(directory: Path) -> dict[str, str]:
    """The index's map from tensor to file name.

    Raises:
      ValueError: not an index, or a file name that leads out of the directory.
    """
    weight_map = read_json_object(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(f"{directory / INDEX} must map tensors to files in weight_map: fetch it again")
    outside = sorted(name for name in set(weight_map.values()) if Path(name).name != name)
    if outside:
        raise ValueError(f"{directory / INDEX} must name files beside it, got {shorten(outside)}: fetch it again")
    return weight_map


def read_entries(directory: Path) -> dict[str, TensorEntry]:
    """Every tensor of a checkpoint by name; reads headers only.

    Raises:
      FileNotFoundError, ValueError: a missing, damaged or contradictory file, by name.
    """
    entries: dict[str, TensorEntry] = {}
    for file in weight_files(directory):
        for name, entry in read_header(file).items():
            if name in entries:
                raise ValueError(
                    f"{name} must be in one file, got {entries[name].path.name} and {file.name}: fetch them again"
                )
            entries[name] = entry
    if not (directory / "model.safetensors").is_file():
        absent = sorted(name for name in read_index(directory) if name not in entries)
        if absent:
            raise ValueError(
                f"{directory / INDEX} must agree with its files, which lack {shorten(absent)}: fetch them again"
            )
    return entries


def shorten(names: list[str], limit: int = 3) -> str:
    """In: ["a", "b", "c", "d"], 2. Out: "a, b and 2 more"."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
