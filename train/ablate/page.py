"""A page of results that holds several ablations, each put in by its own command."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3_jax.train.ablate.table import markdown

_TITLE = "# Ablations\n"


def put_on_page(page: Path, table: Mapping[str, Any], root: Path, plots: Sequence[str]) -> None:
    """Puts an ablation's section into a Markdown page, in the place of its older one where there is one.

    Plots are copied beside the page, into a directory of the page's name.

    In: a page with "<!-- qk-norm -->...<!-- end of qk-norm -->"     Out: the same page, with what is between replaced
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    name, images = table["name"], page.parent / page.stem
    copied = []
    for plot in plots:
        images.mkdir(exist_ok=True)
        shutil.copyfile(root / plot, images / f"{name}-{plot}")
        copied.append(f"{page.stem}/{name}-{plot}")
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{begin}\n{markdown(table, copied, level=2)}{end}\n"
    text = page.read_text(encoding="utf-8") if page.exists() else _TITLE
    old = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}\n", re.S)
    text = old.sub(lambda _: section, text) if old.search(text) else f"{text.rstrip()}\n\n{section}"
    beside = page.with_name(f".{page.name}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(page)
