"""`qwen3-jax plan`: what a model needs on a machine that is not here."""

import argparse
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from qwen3_jax.cli.arguments import Parser, UsageError, whole_number

_FINALISTS = 3  # meshes that --search compiles

_EPILOG = """\
The project's own program (training step, prefill or decode loop) is compiled for chips that are not here, on any Linux
machine: for TPUs by pip install 'qwen3-jax[tpu-plan]', for GPUs by 'qwen3-jax[gpu-plan]' in a separate environment. It
takes 20 seconds to 5 minutes. A program that does not fit is an answer, not an error. Bytes are per chip and step;
FLOPs are of all chips.

examples:
  qwen3-jax plan --model qwen3-0.6b --mesh fsdp=8 --topology v5e:2x4 --mode train --sequence-length 4096 --batch-size 8
  qwen3-jax plan --config configs/train/stages/1-general.yaml --topology v5p:4x4x8 data.rows=512
  qwen3-jax plan --model qwen3-32b --search --topology v5p:2x2x2 --mode decode --sequence-length 32768 --batch-size 8
  qwen3-jax plan --model qwen3-8b --mesh fsdp=8 --topology h100:1x8 --mode train --sequence-length 4096 --batch-size 8
"""


def parser() -> Parser:
    result = Parser(
        "plan",
        "Says what a model needs on TPUs or GPUs: memory, communication, FLOPs, and its bound.",
        _EPILOG,
        json=True,
    )
    add = result.add_argument
    add(
        "--config",
        metavar="FILE",
        help="a training configuration: its model, mesh, batch, optimizer ... (--mode train)",
    )
    add("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="values that replace those of --config")
    add("--model", metavar="NAME", help="a release (qwen3-0.6b ...), or a config.json, YAML or checkpoint")
    add(
        "--mesh",
        metavar="SIZES",
        help="fsdp=32,expert=8, a YAML file, or one of configs/mesh; the product is all devices",
    )
    add(
        "--topology",
        metavar="CHIP:SHAPE",
        help="v4:4x4x4, v5e:2x4, v5p:8x8x4, v6e:16x16, tpu7x:4x4x4; a100, h100, h200, b200 as hosts x GPUs: h100:4x8",
    )
    add("--num-slices", type=whole_number, metavar="N", default=1, help="slices of that shape (1)")
    add("--mode", metavar="MODE", help="train, prefill or decode")
    add("--sequence-length", type=whole_number, metavar="N", help="of a row; decoding: of the cache")
    add("--batch-size", type=whole_number, metavar="N", help="sequences, over all chips")
    add("--search", action="store_true", help=f"try all legal meshes by arithmetic, compile the best {_FINALISTS}")
    result.set_defaults(train=None)
    return result


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs on an accelerator, not even where there is one
    if args.config is not None:
        _take_config(args)
    elif args.overrides:
        raise UsageError(f"key=value must come with --config, got {args.overrides[0]!r} without: use the flags")
    for name in ("model", "topology", "mode", "sequence_length", "batch_size"):
        if getattr(args, name) is None:
            raise UsageError(f"--{name.replace('_', '-')} is needed, got none: see qwen3-jax plan --help")
    if args.mode not in ("train", "prefill", "decode"):
        raise UsageError(f"--mode must be train, prefill or decode, got {args.mode!r}: choose one")
    if args.train is None and (args.mesh is None) != args.search:
        got = "both" if args.search else "neither"
        raise UsageError(f"one of --mesh and --search is needed, got {got}: see qwen3-jax plan --help")
    for name in ("sequence_length", "batch_size", "num_slices"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}: correct it")
    from qwen3_jax.cli.common import print_json

    plan = _search(args) if args.search else _plan(args, args.mesh)
    if args.json:
        print_json(plan)
    else:
        _show(plan)
    return 0


def _take_config(args: argparse.Namespace) -> None:
    """Fills the flags in from a training configuration; `args.train` is the configuration."""
    for name in ("model", "sequence_length", "batch_size"):
        if getattr(args, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} must be left out with --config, got both: the file says it, or key=value")
    if args.search or args.mode not in (None, "train"):
        raise UsageError("--config must go with --mode train and a mesh, got another mode or --search: plan by --model")
    from qwen3_jax.cli.options import config_file
    from qwen3_jax.train import load_config

    train = load_config(config_file("train", args.config), args.overrides)
    if train.remat != "full":
        warnings.warn(f"FLOPs and the bound are those of remat: full, the file says {train.remat}", stacklevel=1)
    args.train, args.mode, args.model = train, "train", args.config
    args.sequence_length, args.batch_size = train.data.length, train.data.rows


def _plan(args: argparse.Namespace, mesh_text: str | None) -> dict[str, Any]:
    import dataclasses

    from qwen3_jax.cli.options import read_mesh
    from qwen3_jax.config import ModelConfig
    from qwen3_jax.infer.ahead_of_time import plan_decode, plan_prefill
    from qwen3_jax.plans.report import Request, describe
    from qwen3_jax.sharding.ahead_of_time.topology import parse_topology, topology_devices
    from qwen3_jax.train.step import plan_run, plan_train

    topology = parse_topology(args.topology, args.num_slices)
    mesh_config = args.train.mesh if mesh_text is None else read_mesh(mesh_text)
    if args.num_slices > 1:
        mesh_config = dataclasses.replace(mesh_config, slices=args.num_slices)
    elif mesh_config.slices > 1:
        raise UsageError(
            f"--num-slices must be the mesh's slices={mesh_config.slices}, got 1: add --num-slices {mesh_config.slices}"
        )
    mesh_config.resolve(topology.num_devices)
    config = _model(args.model) if args.train is None else ModelConfig.from_hf(args.train.model)
    mesh = mesh_config.build(topology_devices(topology))
    flags = {name: getattr(args, name) for name in ("model", "mode", "sequence_length", "batch_size")}
    request = Request(config=config, mesh=mesh_config, topology=topology, **flags)
    asked = (config, mesh, mesh_config.table, args.sequence_length, args.batch_size)
    calls = 1
    if args.train is not None:
        outcome, held = plan_run(dataclasses.replace(args.train, mesh=mesh_config), mesh)
    elif args.mode == "train":
        outcome, held = plan_train(*asked)
    elif args.mode == "decode":
        outcome, held = plan_decode(*asked)
    else:
        outcome, held, calls = plan_prefill(*asked)
    return describe(request, mesh, outcome, held, calls)


def _search(args: argparse.Namespace) -> dict[str, Any]:
    """The best of the compiled finalists, with all candidates under "search"."""
    from qwen3_jax.plans.report import mesh_text
    from qwen3_jax.plans.search import search
    from qwen3_jax.sharding.ahead_of_time.topology import parse_topology

    topology = parse_topology(args.topology, args.num_slices)
    candidates = search(_model(args.model), topology, args.mode, args.sequence_length, args.batch_size)
    if not candidates:
        raise UsageError(
            f"a mesh of {topology.num_devices} devices must divide the model and a batch of {args.batch_size}, got "
            "none that does: change the topology or the batch"
        )
    plans = [_plan(args, mesh_text(candidate.sizes)) for candidate in candidates[:_FINALISTS]]
    best = min(plans, key=lambda plan: (not plan["fits"], sum(plan["seconds"].values())))
    rows = [
        {
            "mesh": candidate.sizes,
            "fits": candidate.fits,
            "peak_bytes_per_chip": candidate.peak_per_chip,
            "bound": candidate.bound.name,
            "seconds": candidate.bound.serial_seconds,
        }
        for candidate in candidates
    ]
    return {**best, "search": rows, "compiled": plans}


def _model(name: str) -> Any:
    from pathlib import Path

    from qwen3_jax.releases import load_model_config

    return load_model_config(Path(name) / "config.json" if Path(name).is_dir() else name)


def _show(plan: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from qwen3_jax.plans.report import mesh_text

    console = Console(highlight=False)
    title = (
        f"{plan['model']} {plan['mode']} on {plan['num_slices']} x {plan['topology']} ({plan['chips']} chips), mesh "
        f"{mesh_text(plan['mesh'], plan['rules'])}, sequence {plan['sequence_length']}, batch {plan['batch_size']}"
    )
    console.print(Text(title, style="bold"), soft_wrap=True)
    for label, text in _lines(plan):
        console.print(Text.assemble((f"  {label:<14}", "cyan"), text), soft_wrap=True)
    for row in plan.get("search", [])[:10]:
        verdict = "fits" if row["fits"] else "too large"
        console.print(
            f"  candidate     {mesh_text(row['mesh'])}: {_gib(row['peak_bytes_per_chip'])}, {verdict}, "
            f"{row['seconds']:.3g} s by the analytic model",
            soft_wrap=True,
        )


def _lines(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    peak, hbm = plan["peak_bytes_per_chip"], plan["hbm_bytes_per_chip"]
    verdict = "fits" if plan["fits"] else "does NOT fit"
    yield "memory", f"{_gib(peak)} of {_gib(hbm)} a chip: {verdict}"
    for name, size in plan["memory"].items():
        yield "", f"{name} {_gib(size)}"
    if not plan["fits"]:
        largest = "; ".join(f"{entry['what']} {_gib(entry['bytes'])}" for entry in plan["largest_buffers"])
        yield "largest", f"{largest} (by the {plan['largest_buffers_source']})"
        nearest = plan["nearest_mesh"]
        from qwen3_jax.plans.report import mesh_text

        remedy = mesh_text(nearest) if nearest else "none of these chips: take more chips or a smaller batch"
        yield "nearest mesh", f"{remedy} (by the analytic model)"
    for row in plan["communication"]:
        times = f", {row['runs']} times" if "runs" in row else " (analytic)"
        yield "sends", f"{row['kind']} over {' and '.join(row['axes']) or 'no axis'}: {_gib(row['bytes'])}{times}"
    yield "FLOPs", f"{plan['flops_per_step']:.4g} a step, {plan['hardware_flops_per_step']:.4g} with recomputation"
    parts = ", ".join(f"{name} {value:.3g} s" for name, value in plan["seconds"].items())
    yield "bound", f"{plan['bound']} ({parts})"
    mfu = f"{plan['mfu_bound']:.1%} MFU with everything overlapped, {plan['mfu_without_overlap']:.1%} with nothing"
    yield "allows", f"{mfu}; {plan['tokens_per_second_bound']:,.0f} tokens/s"
    yield "compiled in", f"{plan['compile_seconds']} s"
    for note in plan["notes"]:
        yield "note", note


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**24 else f"{size / 2**20:.2f} MiB"
