"""`transformers` on torch, called step by step with its cache: without what its `generate` adds to a step."""

import argparse
import json
import time
from typing import Any

from benchmarks.common import GROUP, fastest, peak_rss, since_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--first-token", type=int, default=0, metavar="TOKENS")
    args = parser.parse_args()

    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model_class: Any = transformers.AutoModelForCausalLM  # imports the model's code, lazily
    out: dict[str, Any] = {"import_s": since_start(), "import_rss": peak_rss()}
    began = time.perf_counter()
    model = model_class.from_pretrained(args.checkpoint, dtype=getattr(torch, args.dtype)).to(device).eval()
    out["load_s"] = time.perf_counter() - began
    out["load_rss"] = peak_rss()
    out["version"] = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def feed(tokens: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        result = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = result.logits[:, -1].argmax(-1, keepdim=True)
        return token, result.past_key_values

    if args.first_token:
        int(feed(torch.ones((1, args.first_token), dtype=torch.long, device=device))[0])
        out["first_token_s"] = since_start()
    else:
        prompt = torch.ones((1, args.prefill), dtype=torch.long, device=device)
        began = time.perf_counter()
        int(feed(prompt)[0])
        first = time.perf_counter() - began
        out["prefill_s"] = fastest(lambda: int(feed(prompt)[0]), 3)
        out["compile_prefill_s"] = max(first - out["prefill_s"], 0.0)
        for batch in args.batches:
            token, cache = feed(torch.ones((batch, args.context), dtype=torch.long, device=device))
            seconds = []
            for _ in range(args.groups):
                began = time.perf_counter()
                for _ in range(GROUP):
                    token, cache = feed(token, cache)
                token.cpu()
                seconds.append((time.perf_counter() - began) / GROUP)
            out[f"decode_{batch}_s"] = min(seconds)
            out.setdefault("small_rss", peak_rss())
    out["peak_rss"] = peak_rss()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
