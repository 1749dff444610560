"""llama.cpp through llama-cpp-python's low-level functions. Runs in that package's own Python, as a plain script:
nothing of this project or of jax is needed there, only `llama_cpp`, `gguf` and `numpy`.

    python benchmarks/peers/llama.py --convert CHECKPOINT FILE.gguf     # bfloat16 weights, a vocabulary of placeholders
    python benchmarks/peers/llama.py FILE.gguf                          # measures
"""

import argparse
import ctypes
import json
import os
import time
from pathlib import Path

import numpy as np

GROUP = 8
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(checkpoint: Path, target: Path) -> None:
    """Writes a dense, tied, single-file bfloat16 checkpoint as GGUF."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    # Bytes as byte-level BPE writes them, so that the loader finds its newline; the rest are placeholders.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    tokens = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    tokens += [f"<{index}>" for index in range(len(tokens), config["vocab_size"])]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])  # the loader wants some
    writer.add_eos_token_id(len(tokens) - 1)
    for name, shape, bits in read_safetensors(checkpoint / "model.safetensors"):
        if name == "lm_head.weight":
            continue
        if len(shape) == 1:  # norms are float32 there
            wide = (bits.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(gguf_name(name), wide)
        else:
            raw = bits.view(np.uint8).reshape(shape[0], 2 * shape[1])
            writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_safetensors(path: Path):
    """Name, shape and bfloat16 bits of every tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
            begin, end = entry["data_offsets"]
            yield name, entry["shape"], data[begin:end].view(np.uint16)


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


class Llama:
    """A model with one context for `batch` sequences."""

    def __init__(self, llama_cpp, model, batch: int, capacity: int, threads: int) -> None:
        self.lib, self.model, self.batch = llama_cpp, model, batch
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = batch * capacity, max(batch * capacity, 512), 512
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, params)
        assert self.context
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def feed(self, tokens: np.ndarray, begin: int) -> np.ndarray:
        """Feeds [B, T] tokens from position `begin` on and returns the most likely next one of each row."""
        rows, length = tokens.shape
        batch = self.lib.llama_batch_init(rows * length, 0, 1)
        batch.n_tokens = rows * length
        for row in range(rows):
            for t in range(length):
                i = row * length + t
                batch.token[i], batch.pos[i] = int(tokens[row, t]), begin + t
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
                batch.logits[i] = t == length - 1
        status = self.lib.llama_decode(self.context, batch)
        assert status == 0, f"llama_decode returned {status}"
        last = [(row + 1) * length - 1 for row in range(rows)]
        out = [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.vocab_size,)) for i in last]
        chosen = np.array([row.argmax() for row in out])[:, None]
        self.lib.llama_batch_free(batch)
        return chosen

    def close(self) -> None:
        self.lib.llama_free(self.context)


def measure(args: argparse.Namespace) -> dict:
    import llama_cpp

    from benchmarks.common import peak_rss  # the caller puts the project on the path

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    started = float(os.environ.get("BENCHMARK_STARTED", time.time()))
    out: dict = {"version": f"llama-cpp-python {llama_cpp.__version__}", "import_s": time.time() - started}
    began = time.perf_counter()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(args.file).encode(), params)
    assert model, "the GGUF file did not load"
    out["load_s"], out["load_rss"] = time.perf_counter() - began, peak_rss()
    threads = args.threads or os.cpu_count() or 1
    if args.first_token:
        Llama(llama_cpp, model, 1, 256, threads).feed(np.ones((1, args.first_token), int), 0)
        return {**out, "first_token_s": time.time() - started, "peak_rss": peak_rss()}
    seconds = []
    for _ in range(3):
        llama = Llama(llama_cpp, model, 1, args.prefill + 256, threads)
        began = time.perf_counter()
        llama.feed(np.ones((1, args.prefill), int), 0)
        seconds.append(time.perf_counter() - began)
        llama.close()
    out["prefill_s"] = min(seconds)
    for batch in args.batches:
        llama = Llama(llama_cpp, model, batch, args.context + 128, threads)
        token, seconds = llama.feed(np.ones((batch, args.context), int), 0), []
        for group in range(args.groups):
            began = time.perf_counter()
            for step in range(GROUP):
                token = llama.feed(token, args.context + group * GROUP + step)
            seconds.append((time.perf_counter() - began) / GROUP)
        out[f"decode_{batch}_s"] = min(seconds)
        out.setdefault("small_rss", peak_rss())
        llama.close()
    return {**out, "peak_rss": peak_rss()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--convert", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--first-token", type=int, default=0, metavar="TOKENS")
    args = parser.parse_args()
    if args.convert:
        convert(args.convert, args.file)
    else:
        print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
