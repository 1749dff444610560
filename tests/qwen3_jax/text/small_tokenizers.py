"""Small tokenizers trained on the spot, in the form of a checkpoint directory."""

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

POCKET_TEMPLATE = Path(__file__).resolve().parents[3] / "qwen3_jax" / "pocket" / "chat_template.jinja"

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

TEXTS = (
    "Hello, world! It's 12:30 and we'll count to 100.",
    "  leading, trailing  and   inner spaces \n\n\ttabs\r\nand line ends\n",
    "Čeština, français, Ελληνικά, русский, עברית, العربية",
    "हिन्दी में क्षत्रिय और ज्ञान",
    "中文分词，日本語のテキスト、한국어 문장",
    "emoji: 🙂 👩‍👩‍👧‍👦 🇮🇳 ❤️ e\u0301 \u00e9 \ufffd",
    "<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think>\n\n<tool_call>",
    "x",
    "",
    " ",
    "\n",
    "\u2581mark and \u2581\u2581two",
)


def bpe(vocab_size: int = 420, decoder: Any = None) -> tokenizers.Tokenizer:
    """A byte-level BPE with Qwen3's normalizer, pre-tokenizer and (some of) its added tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoder or decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 4, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([tokenizers.AddedToken(token, special=False, normalized=False) for token in PLAIN])
    return tokenizer


def bpe_directory(directory: Path, template: str | None = None, **config: Any) -> Path:
    """A checkpoint directory with that BPE; `config` goes into tokenizer_config.json. The template is the pocket's."""
    directory.mkdir(parents=True, exist_ok=True)
    bpe().save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, **config}
    settings.setdefault("tokenizer_class", "Qwen2Tokenizer")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    template = POCKET_TEMPLATE.read_text(encoding="utf-8") if template is None else template
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory


def sentencepiece_model(**options: Any) -> bytes:
    """A sentencepiece BPE that keeps line ends, with byte fallback and two control tokens, unless told otherwise."""
    settings: dict[str, Any] = {
        "vocab_size": 480,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "control_symbols": ["<|im_start|>", "<|im_end|>"],
        "user_defined_symbols": ["<think>", "</think>"],
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    lines = [line for text in TEXTS for line in text.splitlines() if line.strip() and "<|" not in line]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=written, **(settings | options)
    )
    return written.getvalue()
