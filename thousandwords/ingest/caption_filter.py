"""Caption filters: minimum length, boilerplate, language.

The filters of the paper's training set (arXiv 2102.12092, appendix C), with py3langid instead of cld3. It is not
reliable on a few words, so a caption is dropped only if another language is clearly more likely.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from thousandwords.core.errors import InvalidInput, UserError
from thousandwords.text.normalize import normalize
from thousandwords.text.words import words

REASONS = ("caption_too_short", "boilerplate", "wrong_language")
REQUIREMENT = "py3langid>=0.4,<0.5"


@dataclass(frozen=True)
class CaptionRules:
    """Requirements for a caption; `DataConfig` documents and checks them."""

    min_words: int = 0
    boilerplate: tuple[str, ...] = ()
    language: str | None = None
    language_margin: float = 0.0

    def __bool__(self) -> bool:
        return self.min_words > 0 or bool(self.boilerplate) or self.language is not None


def check_boilerplate(patterns: Sequence[str]) -> None:
    """Raise ValueError if a pattern is not a regular expression, or matches every caption."""
    for number, pattern in enumerate(patterns):
        name = f"data.boilerplate[{number}] is {pattern!r}"
        try:
            matches_empty_text = re.search(pattern, "")
        except (re.error, OverflowError) as error:  # a{99999999999} overflows
            raise ValueError(f"{name}, not a regular expression: {error}") from error
        if matches_empty_text:
            raise ValueError(f"{name}; it matches an empty text, so it would drop every caption")


def check_language(rules: CaptionRules) -> None:
    """Raise UserError if the language library is not installed, or does not know the rules' language."""
    if rules.language is not None and rules.language not in (languages := _identifier().labels):
        raise UserError(f"data.language is {rules.language!r}; it can be: {', '.join(sorted(languages))}")


def filter_captions(captions: Sequence[str], rules: CaptionRules) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(captions that stay, reasons for the dropped ones); if none stays, raises the problem of the first."""
    problems = [caption_problem(caption, rules) for caption in captions]
    if None not in problems:
        raise problems[0]
    accepted = tuple(caption for caption, problem in zip(captions, problems, strict=True) if problem is None)
    return accepted, tuple(problem.reason for problem in problems if problem is not None)


def caption_problem(caption: str, rules: CaptionRules) -> InvalidInput | None:
    """Why a caption is dropped, or None; cheap checks come first."""
    text = normalize(caption)
    if rules.min_words and (count := len(words(text))) < rules.min_words:
        return InvalidInput("caption_too_short", f"{count} of {rules.min_words} words: {caption!r}")
    for pattern in rules.boilerplate:
        if re.search(pattern, text, re.IGNORECASE):
            return InvalidInput("boilerplate", f"has {pattern!r}: {caption!r}")
    return None if rules.language is None else _wrong_language(caption, rules)


def _wrong_language(caption: str, rules: CaptionRules) -> InvalidInput | None:
    shares = language_shares(caption)  # not normalized: capital letters are evidence for a language
    best = max(shares, key=shares.__getitem__)
    if shares[best] - shares[rules.language] <= rules.language_margin:
        return None
    detail = f"{best} {shares[best]:.2f}, {rules.language} {shares[rules.language]:.2f}: {caption!r}"
    return InvalidInput("wrong_language", detail)


def language_shares(caption: str) -> dict[str, float]:
    """The probability of each language, {"en": 0.54, ...}; about equal for text without letters."""
    return dict(_identifier().rank(caption))


@functools.cache
def _identifier():
    """Loaded once per process (half a second), then only read."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError(
            "data.language needs the package py3langid, which is not installed. "
            f"Run: pip install '{REQUIREMENT}', or remove data.language"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
