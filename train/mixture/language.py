"""The language of a text, by py3langid.

py3langid (BSD-3-Clause) goes on with langid.py (Lui and Baldwin, ACL 2012): naive Bayes over byte n-grams, pure Python
and numpy, its model of 4.6 MB inside the package, so that nothing is downloaded
and nothing is compiled.
"""

import functools
from collections.abc import Mapping
from typing import Any

UNKNOWN = "und"  # ISO 639-2 for undetermined
MIN_CONFIDENCE = 0.2  # half of the mistakes on short, odd texts become "und"


class Language:
    """Label `language`: an ISO 639 code, or "und" where no language has a fifth of the probability."""

    name = "language"
    labels = ("language",)

    def __init__(self, codes: str = "") -> None:
        """Args:
          codes: the only languages to choose from, "en,zh"; "": all that the model knows.

        Raises:
          ValueError: a code that the model does not know, or py3langid is not installed.
        """
        chosen = tuple(code.strip() for code in codes.split(",") if code.strip())
        self._identifier = _identifier(chosen)

    def annotate(self, record: Mapping[str, Any]) -> dict[str, str]:
        code, _ = self._identifier.classify(record["text"])
        return {"language": code}


@functools.cache
def _identifier(codes: tuple[str, ...]) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ValueError("annotator language needs py3langid: pip install 'qwen3-jax[language]'") from None
    made = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE)
    if codes:
        if unknown := sorted(set(codes) - set(made.labels)):
            raise ValueError(f"annotator language must be given ISO 639 codes it knows, got {unknown[0]!r}: correct it")
        made.set_languages(codes)
    return made
