"""`qwen3-jax corpus`: a small corpus to try data pipelines on."""

import argparse

from qwen3_jax.cli.arguments import Parser, UsageError

_EPILOG = """\
Writes train.jsonl and held_out.jsonl: documents in nine languages and six domains, clean, noisy and repetitive, each
with its true labels. The same values make the same files. Made by this project: Apache-2.0.

values: seed, documents, held_out, min_characters, max_characters, max_recall_characters; domains, qualities and
languages are shares of documents, relative to one another, and what is left out is not made.

examples:
  qwen3-jax corpus runs/corpus
  qwen3-jax corpus runs/long documents=500 'domains={recall: 1}' 'qualities={clean: 1}' max_recall_characters=30000
"""


def parser() -> Parser:
    result = Parser("corpus", "Makes a small multilingual corpus with labels, from a seed.", _EPILOG, json=True)
    result.add_argument("directory", metavar="OUT_DIR", nargs="?", help="the directory to write")
    result.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="values other than the defaults")
    return result


def run(args: argparse.Namespace) -> int:
    """Writes the corpus and names its files."""
    if args.directory is None or "=" in args.directory:
        raise UsageError("a directory is needed, got none: write qwen3-jax corpus OUT_DIR")
    from qwen3_jax.cli.common import print_result
    from qwen3_jax.train.parsing import apply, parse, parse_overrides
    from qwen3_jax.train.pocket.corpus import CorpusConfig, write_corpus

    config = parse(CorpusConfig, apply({}, parse_overrides(args.overrides)))
    made = {name: str(path) for name, path in write_corpus(config, args.directory).items()}
    return print_result(args, made, "\n".join(made.values()))
