"""The output of parallel stages: in a terminal one progress bar per stage, in a log line after line."""

import re
import sys

from tqdm import tqdm

PROGRESS = re.compile(
    r"(?P<label>[^/]+): (?P<done>\d+)/(?P<total>\d+) \(\d+ %\), \S+ (?P<unit>\w+)/s, \S+ left(?:, (?P<note>.*))?"
)
DVC_CHATTER = re.compile(  # what DVC prints at the end of every stage
    r"Running stage|> |Generating lock|Updating lock|To track the changes|To enable auto staging|Use `dvc push`|\tgit add|"
    r"\tdvc config|Data and pipelines are up to date|Verifying data sources|Stage '\w+' didn't change"
)


class ProgressDisplay:
    """Shows the output of parallel stages; bars are made from lines of thousandwords/core/progress.py."""

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.bars: dict[str, dict[str, tqdm]] = {}  # {running stage: {label: bar}}

    def start(self, stage: str) -> None:
        self.bars[stage] = {}
        self.print(f"{stage} ...")

    def show_line(self, stage: str, text: str) -> None:
        """Show a line of a stage's output."""
        match = PROGRESS.fullmatch(text) if self.is_terminal else None
        if match:
            self._update_bar(stage, match)
        elif not DVC_CHATTER.match(text):
            self.print(text if text.startswith(f"{stage}: ") else f"{stage}: {text}")

    def end(self, stage: str) -> None:
        for bar in self.bars.pop(stage, {}).values():
            bar.close()

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        if self.is_terminal:
            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _update_bar(self, stage: str, match: re.Match) -> None:
        bars, label, done = self.bars.setdefault(stage, {}), match["label"], int(match["done"])
        if label not in bars:  # the rate counts from here: a resumed training starts late
            options = {"unit": match["unit"], "dynamic_ncols": True, "leave": False, "file": sys.stderr}
            bars[label] = tqdm(initial=done, total=int(match["total"]), desc=label, **options)
        bars[label].n = done
        bars[label].set_postfix_str(match["note"] or "")
