"""The lines of several stages at once: in a terminal a bar for each stage at work, in a log line after line."""
from __future__ import annotations

import re
import sys

from tqdm import tqdm

PROGRESS = re.compile(
    r"(?P<label>[^/]+): (?P<done>\d+)/(?P<total>\d+) \(\d+ %\), \S+ (?P<unit>\w+)/s, \S+ left(?:, (?P<note>.*))?"
)
CHATTER = re.compile(  # what DVC says at the end of every stage, and would say of a whole run once
    r"Running stage|> |Generating lock|Updating lock|To track the changes|To enable auto staging|Use `dvc push`|\tgit add|"
    r"\tdvc config|Data and pipelines are up to date|Verifying data sources|Stage '\w+' didn't change"
)


class Screen:
    """Where stages side by side show what they do; a bar is made of the lines that stages/_progress.py writes."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.bars: dict[str, dict[str, tqdm]] = {}  # of each stage at work, by what a bar counts

    def begins(self, stage: str) -> None:
        self.bars[stage] = {}
        self.tell(f"{stage} ...")

    def line(self, stage: str, text: str) -> None:
        """A line of a stage's output."""
        found = PROGRESS.fullmatch(text) if self.is_terminal else None
        if found:
            self._move(stage, found)
        elif not CHATTER.match(text):
            self.tell(text if text.startswith(f"{stage}: ") else f"{stage}: {text}")

    def ends(self, stage: str) -> None:
        for bar in self.bars.pop(stage, {}).values():
            bar.close()

    def tell(self, text: str) -> None:
        """A line above the bars."""
        if self.is_terminal:
            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        for stage in list(self.bars):
            self.ends(stage)

    def _move(self, stage: str, found: re.Match) -> None:
        bars, label, done = self.bars.setdefault(stage, {}), found["label"], int(found["done"])
        if label not in bars:  # the rate is of what is done from here on: a resumed training begins late
            shown = {"unit": found["unit"], "dynamic_ncols": True, "leave": False, "file": sys.stderr}
            bars[label] = tqdm(initial=done, total=int(found["total"]), desc=label, **shown)
        bar = bars[label]
        bar.n = done
        bar.set_postfix_str(found["note"] or "")
