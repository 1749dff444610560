"""One contestant each, run by `benchmarks.qwen3_0_6b` in a process of its own; each prints one JSON object."""
