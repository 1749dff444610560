"""`qwen3-jax annotate`: labels for the examples of a corpus."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwen3_jax.cli.arguments import Parser, UsageError

_EPILOG = """\
Each record of the inputs is written to OUT with its labels, {"text": ..., "labels": {"language": "en", ...}}. Labels
that a record has already stay, and the table says how often the annotator agrees. A command that was stopped goes on
where it was when it is given again.

annotators: language[=CODES] length repetition characters heuristic, those that installed packages offer, and
module:attribute for one of your own (docs/guides/mixture.md).

examples:
  qwen3-jax annotate corpus/*.jsonl --output labelled.jsonl --annotator language --annotator repetition
  qwen3-jax annotate a.jsonl --output b.jsonl --annotator language=en,zh,ja --annotator my_module:Topic
"""


def parser() -> Parser:
    result = Parser("annotate", "Gives labels to the examples of JSONL files.", _EPILOG, json=True)
    result.add_argument("inputs", metavar="INPUT", nargs="*", default=[], help="JSONL files")
    result.add_argument("--output", metavar="OUT", help="the JSONL file to write")
    result.add_argument("--annotator", action="append", metavar="NAME", help="may be given several times")
    result.add_argument("--field", metavar="NAME", default="text", help='of a record, that has its text ("text")')
    result.add_argument("--overwrite", action="store_true", help="replace labels that records have already")
    result.add_argument("--tokenizer", metavar="DIR", help="count its tokens too")
    return result


def run(args: argparse.Namespace) -> int:
    """Annotates, then says how the labels fell."""
    if not args.inputs or args.output is None or not args.annotator:
        raise UsageError(
            "inputs, --output and --annotator are needed, got "
            f"{len(args.inputs)} inputs, output {args.output}, annotators {args.annotator or []}: "
            "see qwen3-jax annotate --help"
        )
    from qwen3_jax.train.mixture.annotate import annotate, load_annotators

    sys.path.insert(0, "")  # module:attribute may lie in the current directory
    annotators = load_annotators(args.annotator)
    with _bar(sum(Path(name).stat().st_size for name in args.inputs if Path(name).is_file())) as progress:
        summary = annotate(
            args.inputs,
            args.output,
            annotators,
            specs=args.annotator,
            field=args.field,
            overwrite=args.overwrite,
            count=_counter(args.tokenizer),
            progress=progress,
        )
    _show(args, summary)
    return 0


def _counter(tokenizer: str | None) -> Callable[[str], int] | None:
    if tokenizer is None:
        return None
    from qwen3_jax.text.tokenizer import load_tokenizer

    tok = load_tokenizer(tokenizer)
    return lambda text: len(tok.encode(text))


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's stderr, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("annotating", total=total)
        yield lambda read: bar.update(task, completed=read)


def _show(args: argparse.Namespace, summary: Any) -> None:
    if args.json:
        from qwen3_jax.cli.common import print_json

        print_json(
            {
                "output": args.output,
                **{name: getattr(summary, name) for name in ("records", "resumed", "documents", "characters")},
                **({"tokens": summary.tokens} if args.tokenizer else {}),
                "agreement": {label: summary.agreed[label] / n for label, n in summary.compared.items()},
            }
        )
        return
    from rich.console import Console

    from qwen3_jax.train.mixture.labels import by_value, share_rows, share_table

    console = Console(highlight=False)
    unit = "tokens" if args.tokenizer else "characters"
    for label, documents in summary.documents.items():
        counts = by_value(getattr(summary, unit)[label])
        table = share_table((label,), share_rows(counts), unit=unit, further={"documents": by_value(documents)})
        console.print(table)
    for label, compared in summary.compared.items():
        agreed = summary.agreed[label]
        console.print(f"{label}: {compared:,} records had one, the annotator agrees with {agreed / compared:.1%}")
    before = f" ({summary.resumed:,} of them from an earlier start)" if summary.resumed else ""
    console.print(f"{args.output}: {summary.records:,} records{before}", soft_wrap=True)
