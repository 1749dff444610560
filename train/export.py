"""A run's model in Hugging Face form, at its end or from any checkpoint."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from qwen3_jax.checkpoints.adapters import save_adapters
from qwen3_jax.checkpoints.load import read_generation, save_pretrained
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.network.model import Qwen3
from qwen3_jax.parameters.specs import Params
from qwen3_jax.sharding import MeshConfig
from qwen3_jax.sharding.launch.processes import first_does
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from qwen3_jax.train.checkpoints import committed
from qwen3_jax.train.loop import make_training_mesh
from qwen3_jax.train.lora import noted_base
from qwen3_jax.train.run_dir import stored_config
from qwen3_jax.train.state import abstract_state
from qwen3_jax.train.step import make_model
from qwen3_jax.train.tokenizer import GENERATION


def export_model(run_dir: Path, directory: Path, model: Qwen3, params: Params) -> None:
    """Writes a model of a run with the run's tokenizer; many processes call it together."""
    tok = load_tokenizer(run_dir / "tokenizer")
    generation = generation_defaults(tok, run_dir / "tokenizer")
    save_pretrained(directory, model.clone(generation=generation), params, tok)


def export_adapters(run_dir: Path, directory: Path, model: Qwen3, adapters: Params) -> Path:
    """Writes adapters of a run in PEFT's form, and the run's tokenizer; many processes call it together."""
    save_adapters(directory, model, adapters, noted_base(run_dir))
    first_does(lambda: load_tokenizer(run_dir / "tokenizer").save(directory))
    return directory


def export_step(run_dir: Path, directory: Path, step: int | None = None, mesh: MeshConfig | None = None) -> int:
    """Writes the model (or its adapters) as it was after a step that has a checkpoint; the run may still be going on.

    Only the parameters that are exported are read, not the optimizer's state.

    Args:
      step: None takes the newest.
      mesh: devices to spread the parameters over; one by default, whatever mesh the run has.

    Returns:
      The step.

    Raises:
      FileNotFoundError: no run there, or one without a checkpoint.
      ValueError: no checkpoint of this step.
    """
    config = stored_config(run_dir)
    if config is None:
        raise FileNotFoundError(f"{run_dir} must be the run_dir of a run, got no config.yaml there: correct the path")
    built = make_training_mesh(mesh or MeshConfig())
    model = make_model(config, built)
    state = abstract_state(model, config, built)
    name = "params" if state.ema is None else "ema"
    wanted = {name: getattr(state, name)}
    found, path = committed(run_dir / "checkpoints", step)
    restore = ocp.args.PyTreeRestore(
        item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        params = checkpointer.restore(path, args=restore)[name]
    params = jax.block_until_ready(params)
    if model.lora is None:
        export_model(run_dir, directory, model, params)
    else:
        export_adapters(run_dir, directory, model, params)
    return found


def generation_defaults(tok: Tokenizer, directory: Path) -> GenerationDefaults:
    """Those that the run took over with its tokenizer, else what Qwen3's hybrid releases have, with this one's ids."""
    if (directory / GENERATION).exists():
        return read_generation(directory)
    end = tok.token_to_id("<|endoftext|>")
    return GenerationDefaults(
        eos_token_ids=tuple(dict.fromkeys(token for token in (tok.eos_token_id, end) if token is not None)),
        bos_token_id=end,
        pad_token_id=end,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
    )
