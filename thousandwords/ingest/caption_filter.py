"""Which captions of a picture are fit to learn from: long enough, no boiler-plate, in the language wanted.

The filters that the paper put on its training set (arXiv 2102.12092, appendix C); it does not say what "too short" is. The
paper took cld3 for the language; here it is py3langid, which comes with its model and asks no network. No such library knows
the language of a few words: a caption is dropped only where another language is clearly likelier, and doubt keeps it.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from thousandwords.errors import UserError
from thousandwords.images import Refused
from thousandwords.text import normalise

REASONS = ("caption_too_short", "boilerplate", "wrong_language")
REQUIREMENT = "py3langid>=0.4,<0.5"


@dataclass(frozen=True)
class Rules:
    """What is asked of a caption; `pairs.Config` says what each is, and checks it."""

    min_words: int = 0
    boilerplate: tuple[str, ...] = ()
    language: str | None = None
    language_margin: float = 0.0

    def __bool__(self) -> bool:
        return self.min_words > 0 or bool(self.boilerplate) or self.language is not None


def check_boilerplate(patterns: Sequence[str]) -> None:
    """ValueError where a pattern is no regular expression, or would be found in every caption."""
    for number, pattern in enumerate(patterns):
        name = f"data.boilerplate[{number}] is {pattern!r}"
        try:
            found = re.search(pattern, "")
        except (re.error, OverflowError) as error:    # a{99999999999} overflows
            raise ValueError(f"{name}, no regular expression: {error}") from error
        if found:
            raise ValueError(f"{name}; it is found where nothing is, so it would drop every caption")


def check_language(language: str | None) -> None:
    """UserError where the library that tells languages is missing, or does not know this one."""
    if language is not None and language not in (known := _identifier().labels):
        raise UserError(f"data.language is {language!r}; it can be: {', '.join(sorted(known))}")


def sift(captions: Sequence[str], rules: Rules) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(captions that stay, reasons of those that do not), in order; where none stays, raises what is wrong with the first."""
    faults = [fault(caption, rules) for caption in captions]
    if None not in faults:
        raise faults[0]
    kept = tuple(caption for caption, problem in zip(captions, faults, strict=True) if problem is None)
    return kept, tuple(problem.reason for problem in faults if problem is not None)


def fault(caption: str, rules: Rules) -> Refused | None:
    """Why a caption is left out, if it is; what is cheap to see is looked at first."""
    words = normalise(caption)
    if (count := len(words.split())) < rules.min_words:
        return Refused("caption_too_short", f"{count} of {rules.min_words} words: {caption!r}")
    for pattern in rules.boilerplate:
        if re.search(pattern, words, re.IGNORECASE):
            return Refused("boilerplate", f"has {pattern!r}: {caption!r}")
    return None if rules.language is None else _wrong_language(caption, rules)


def _wrong_language(caption: str, rules: Rules) -> Refused | None:
    """The caption as it was written: capitals are signs of a language, and of names."""
    shares = language_shares(caption)
    best = max(shares, key=shares.__getitem__)
    if shares[best] - shares[rules.language] <= rules.language_margin:
        return None
    detail = f"{best} {shares[best]:.2f}, {rules.language} {shares[rules.language]:.2f}: {caption!r}"
    return Refused("wrong_language", detail)


def language_shares(caption: str) -> dict[str, float]:
    """How likely each language is: {"en": 0.54, ...}, 1 in all; text without letters gives all about the same."""
    return dict(_identifier().rank(caption))


@functools.cache
def _identifier():
    """Loaded once a process (half a second); it is only read from then on."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError("data.language needs the package py3langid, which is not installed. "
                        f"Run: pip install '{REQUIREMENT}', or leave data.language out") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
