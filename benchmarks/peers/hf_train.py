"""A training step of `transformers` on torch: AdamW (fused), gradients clipped, float32 or under autocast."""

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks.common import peak_rss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--dtype", default="float32", help="of the activations")
    parser.add_argument("--experts", default="", help="implementation of the experts; empty for a dense model")
    args = parser.parse_args()

    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    model_class: Any = transformers.AutoModelForCausalLM  # imports the model's code, lazily
    model = model_class.from_pretrained(args.checkpoint, dtype=torch.float32).train()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    context = torch.autocast(device, dtype=getattr(torch, args.dtype), enabled=args.dtype != "float32")
    if args.experts:
        model.set_experts_implementation(args.experts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (args.rows, args.length))
    ids = torch.tensor(tokens, device=device)
    seconds, busy, losses = [], [], []
    for _ in range(args.steps):
        began, worked = time.perf_counter(), time.process_time()
        with context:
            out = model(ids, labels=ids, **({"output_router_logits": True} if args.experts else {}))
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(out.loss.item())
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
    version = f"transformers {transformers.__version__}, torch {torch.__version__} ({torch.get_num_threads()} threads)"
    result = {
        "step_s": min(seconds[1:]),
        "cpu_s": min(busy[1:]),
        "first_s": seconds[0],
        "losses": losses,
        "version": version,
    }
    print(json.dumps(result | {"peak_rss": peak_rss()}))


if __name__ == "__main__":
    main()
