"""A check of one GPU or TPU in one command: parity with the CPU, speed against measured ceilings, and a peer.

    python -m benchmarks.device                      # everything, 8 minutes at most; writes docs/results/device.md
    python -m benchmarks.device --tiny --out /tmp/d  # the same programs at toy sizes, to be tried on a CPU
    python -m benchmarks.device --only parity decode-8b

Nothing is downloaded: weights are random and are made on the device. Each section runs in a process of its own, so that
one that fails, or takes the whole process with it, costs nothing but its own rows; the table is rewritten after each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, cpu_name, made_by, table

# In order of importance: what comes last is left out when time runs short. Seconds are those to allow for.
SECTIONS = {
    "ceilings": 60,
    "parity": 150,
    "decode-0.6b": 120,
    "decode-8b": 120,
    "train-0.6b": 100,
    "decode-30b-a3b": 150,
    "transformers": 120,
    "train-moe": 100,
    "decode-1.7b": 100,
    "decode-1.7b-stacked": 100,
    "train-1.7b": 100,
    "first-token": 120,
}
TITLES = {
    "ceilings": "What the device can do",
    "parity": "The same computation as on CPU",
    "decode": "Decoding and prefill",
    "train": "Training steps",
    "transformers": "transformers on the same weights",
    "first-token": "From process start to the first token",
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "torch", "transformers")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, for a dry run on CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="directory of device.md and .json")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--seconds", type=float, default=480, help="time for everything")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.only or []) - set(SECTIONS))
    if unknown:
        print(f"--only must name sections ({', '.join(SECTIONS)}), got {unknown[0]}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    report: dict[str, Any] = {"machine": machine(), "made": made_by("benchmarks.device"), "sections": {}}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        for name in args.only or SECTIONS:
            left = args.seconds - (time.monotonic() - began)
            if left < 20:
                report["sections"][name] = {"rows": [], "error": "left out: no time left"}
                continue
            report["sections"][name] = run_section(name, args, scratch, min(left, SECTIONS[name]), report)
            report["seconds"] = round(time.monotonic() - began)
            write(report, args.out)
    write(report, args.out)
    print((args.out / "device.md").read_text(encoding="utf-8"))
    return 0


def run_section(name: str, args: argparse.Namespace, scratch: str, limit: float, report: dict[str, Any]) -> Any:
    """Runs a section in its own process; its rows, and an error in one line where it failed."""
    ceilings = json.dumps({row["what"]: row["value"] for row in report["sections"].get("ceilings", {}).get("rows", [])})
    command = [sys.executable, "-m", "benchmarks.device_sections", name, "--scratch", scratch, "--ceilings", ceilings]
    command += ["--tiny"] if args.tiny else []
    # A section's buffers are freed with its process; what it does not need another program may take.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment.setdefault(
        "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95"
    )  # JAX leaves a quarter alone, nobody is there to use it
    began, rows, status = time.monotonic(), Path(scratch) / f"{name}.jsonl", "out of time"
    log = args.out / f"device-{name}.log"
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=limit)
            status = "" if done.returncode == 0 else f"ended with status {done.returncode}"
        except subprocess.TimeoutExpired:
            pass
    found = [json.loads(line) for line in rows.read_text("utf-8").splitlines()] if rows.exists() else []
    if status:
        words = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        status = f"{status}: {words[-1][:300] if words else 'no output'}"
    else:
        log.unlink()
    print(f"{name}: {len(found)} rows in {time.monotonic() - began:.0f} s {status}", flush=True)
    return {"rows": found, "error": status, "seconds": round(time.monotonic() - began)}


def machine() -> dict[str, Any]:
    """The device, its driver and the packages that are there; those that are missing are named."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        device = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        device = "no NVIDIA GPU"
    return {"device": device, "cpu": f"{os.cpu_count()} x {cpu_name()}", "versions": versions}


def write(report: dict[str, Any], out: Path) -> None:
    here = report["machine"]
    missing = [name for name, version in here["versions"].items() if version is None]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items() if version)
    lines = [
        "# One device, checked",
        "",
        f"{here['device']}; {here['cpu']}; Python {sys.version.split()[0]}; {versions}.",
    ]
    lines += [f"Not installed: {', '.join(missing)}."] if missing else []
    lines += [
        report["made"],
        f"It took {report.get('seconds', 0)} s. Times are medians (ceilings: the best of many). *Of the bound* and",
        "MFU compare with the measured ceilings: bytes that must be read over the copy's bandwidth, FLOPs over the",
        "product's rate.",
    ]
    title, kinds = "", list(TITLES)
    kind_of = {name: next(kind for kind in kinds if name.startswith(kind)) for name in report["sections"]}
    for name, section in sorted(report["sections"].items(), key=lambda item: kinds.index(kind_of[item[0]])):
        heading = TITLES[kind_of[name]]
        if heading != title:
            title = heading
            lines += ["", f"## {title}"]
        lines += ["", f"### {name}"] if "-" in name else []
        rows = [[row["what"], row["shown"], row.get("note", "")] for row in section["rows"]]
        lines += ["", *table(["what", "measured", "note"], rows)] if rows else []
        lines += ["", f"**{section['error']}**"] if section["error"] else []
    for path, text in (
        (out / "device.md", "\n".join(lines) + "\n"),
        (out / "device.json", json.dumps(report, indent=1)),
    ):
        beside = path.with_suffix(path.suffix + ".partial")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)


if __name__ == "__main__":
    sys.exit(main())
