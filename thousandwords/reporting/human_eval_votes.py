"""What people voted on a sheet: CSV files and the sheet's key in, shares with intervals out.

A prompt falls to the run that most of its raters chose, as in the paper's best-of-five vote (arXiv 2102.12092, section 3,
`metrics.majority`); where an even number of raters is split, half of it to each. Beside it: how far raters agree, and what
hints at a rater who did not look (always one side, no time at all).
"""
from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thousandwords.errors import UserError
from thousandwords.metrics import bootstrap_interval

QUESTIONS = {"realism": "Which is more realistic?", "caption": "Which better matches the caption?"}
COLUMNS = ("sheet", "rater", "prompt_number", "caption", "question", "side", "seconds")  # of a file of votes
SIDES = ("left", "right")
ENOUGH = 5  # raters of the paper
NAMED = 5  # problems of a kind that are told one by one


@dataclass(frozen=True)
class Vote:
    """One answer: which run ("a" or "b") a rater chose, and on which side it stood."""

    rater: str
    number: int
    question: str
    run: str
    side: str
    seconds: float


def read_votes(files: Sequence[Path], key: Mapping) -> list[Vote]:
    """All votes of these files. Raises UserError that names every line that does not belong to this sheet, and every rater
    who is there twice."""
    votes, problems, files_of = [], [], {}
    for path in files:
        found = list(_read(Path(path), key, problems))
        votes += found
        for rater in dict.fromkeys(vote.rater for vote in found):
            if rater.casefold() in files_of:
                problems.append(f"{path}: {rater!r} has voted in {files_of[rater.casefold()]} already; keep one of both")
            files_of[rater.casefold()] = path
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise UserError("these votes cannot be counted:\n  " + "\n  ".join(problems[:20]) + more)
    if not votes:
        raise UserError("there is no vote in these files. Give the CSV files that the sheet saved")
    return votes


def _read(path: Path, key: Mapping, problems: list[str]) -> Iterator[Vote]:
    """The votes of one file; what is wrong with it is added to `problems`."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read ({error.__class__.__name__}); give a CSV file that the sheet saved")
        return
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            problems.append(f"{path} lacks the column {missing[0]!r}; give a CSV file that the sheet saved")
            return
        rows = list(rows)
    except csv.Error as error:
        problems.append(f"{path} is no CSV ({error}); give a file that the sheet saved")
        return
    if others := sorted({str(row["sheet"]) for row in rows} - {key["sheet"]}):
        problems.append(f"{path} belongs to the sheet {others[0]!r}, and the key to {key['sheet']!r}")
        return
    seen: set[tuple] = set()
    for line, row in enumerate(rows, start=2):
        problem = _fault(row, key) or ("the second vote on one question" if _place(row) in seen else None)
        if problem:
            problems.append(f"{path}, row {line}: {problem}")
        else:
            seen.add(_place(row))
            yield _vote(row, key)


def _place(row: Mapping) -> tuple:
    return _name(row), row["prompt_number"], row["question"]


def _name(row: Mapping) -> str:
    return " ".join((row["rater"] or "").split())


def _fault(row: Mapping, key: Mapping) -> str | None:
    """What is wrong with a row, in words."""
    known = {str(prompt["number"]): prompt["caption"] for prompt in key["prompts"]}
    if not _name(row):
        return "there is no rater's name"
    if row["prompt_number"] not in known:
        return f"the sheet has no prompt {row['prompt_number']!r}"
    if row["caption"] != known[row["prompt_number"]]:
        return f"prompt {row['prompt_number']} is {known[row['prompt_number']]!r}, not {row['caption']!r}"
    if row["question"] not in QUESTIONS:
        return f"there is no question {row['question']!r}; it can be: {', '.join(QUESTIONS)}"
    if row["side"] not in SIDES:
        return f"the side is {row['side']!r}; it can be: {', '.join(SIDES)}"
    return None if _seconds(row) is not None else f"{row['seconds']!r} is no number of seconds"


def _seconds(row: Mapping) -> float | None:
    try:
        value = float(row["seconds"])
    except (TypeError, ValueError):
        return None
    return value if 0 <= value < float("inf") else None


def _vote(row: Mapping, key: Mapping) -> Vote:
    number = int(row["prompt_number"])
    left = key["prompts"][number - 1]["left"]
    run = left if row["side"] == "left" else {"a": "b", "b": "a"}[left]
    return Vote(_name(row), number, row["question"], run, row["side"], _seconds(row))


def count_votes(votes: Sequence[Vote], key: Mapping, rng: np.random.Generator) -> dict:
    """All that votes.json says: shares of `a` per question, agreement, raters, and what is missing of whom."""
    raters = sorted({vote.rater for vote in votes})
    return {
        "sheet": key["sheet"], "a": key["a"], "b": key["b"], "prompts": len(key["prompts"]),
        "questions": {
            name: _answers([vote for vote in votes if vote.question == name], rng) for name in QUESTIONS
        },
        "raters": {rater: _rater([vote for vote in votes if vote.rater == rater]) for rater in raters},
        "missing": {rater: missing for rater in raters if (missing := _missing(votes, key, rater))},
    }  # fmt: skip


def _answers(votes: Sequence[Vote], rng: np.random.Generator) -> dict:
    """One question: {"prompts", "a_share", "interval", "ties", "a_votes": {k of R: prompts}, "agreement", "kappa"}."""
    table = votes_for_a(votes)
    if not table:
        return {"prompts": 0}
    won = np.array([majority_of(chose_a, count) for chose_a, count in table.values()])
    return {
        "prompts": len(table), "a_share": float(won.mean()), "interval": bootstrap_interval(won, rng),
        "ties": int((won == 0.5).sum()),
        "a_votes": {f"{chose_a} of {count}": prompts for (chose_a, count), prompts in sorted(Counter(table.values()).items())},
        **agreement(list(table.values())),
    }  # fmt: skip


def votes_for_a(votes: Sequence[Vote]) -> dict[int, tuple[int, int]]:
    """{prompt: (raters who chose a, raters)}"""
    table: dict[int, tuple[int, int]] = {}
    for vote in votes:
        chose_a, count = table.get(vote.number, (0, 0))
        table[vote.number] = chose_a + (vote.run == "a"), count + 1
    return table


def majority_of(chose_a: int, count: int) -> float:
    """1 where most chose a, 0 where most did not, a half each where they are split."""
    return 0.5 if 2 * chose_a == count else float(2 * chose_a > count)


def agreement(table: Sequence[tuple[int, int]]) -> dict[str, float | None]:
    """How far raters agree: {"agreement": share of pairs of raters who chose the same, "kappa": Fleiss' kappa}, over prompts with
    two raters or more; None where there is none, or where chance alone would give the same."""
    shared = [(chose_a, count) for chose_a, count in table if count > 1]
    if not shared:
        return {"agreement": None, "kappa": None}
    alike = [(k * (k - 1) + (n - k) * (n - k - 1)) / (n * (n - 1)) for k, n in shared]
    share = sum(k for k, _ in shared) / sum(n for _, n in shared)
    seen, chance = statistics.mean(alike), share**2 + (1 - share) ** 2
    return {"agreement": seen, "kappa": None if chance == 1 else (seen - chance) / (1 - chance)}


def _rater(votes: Sequence[Vote]) -> dict:
    """What tells whether somebody looked."""
    left = sum(vote.side == "left" for vote in votes) / len(votes)
    return {"votes": len(votes), "left_share": left, "median_seconds": statistics.median(vote.seconds for vote in votes)}


def _missing(votes: Sequence[Vote], key: Mapping, rater: str) -> list[str]:
    """["3 realism", ...]: what this rater has not answered."""
    given = {(vote.number, vote.question) for vote in votes if vote.rater == rater}
    wanted = [(prompt["number"], question) for prompt in key["prompts"] for question in QUESTIONS]
    return [f"{number} {question}" for number, question in wanted if (number, question) not in given]


def lines(counted: Mapping) -> list[str]:
    """What is printed: a line a question, then what one should know of the raters."""
    told = [_line(QUESTIONS[name], answers, counted) for name, answers in counted["questions"].items()]
    raters = counted["raters"]
    if len(raters) < ENOUGH:
        told.append(f"only {len(raters)} of {ENOUGH} raters: the paper asked {ENOUGH}, and so few may not speak for others")
    for rater, missing in counted["missing"].items():
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        told.append(f"{rater} left {len(missing)} votes out (prompt {', '.join(missing[:NAMED])}{more}); the others' count")
    return told


def _line(question: str, answers: Mapping, counted: Mapping) -> str:
    if not answers["prompts"]:
        return f"{question} Nobody answered."
    low, high = answers["interval"]
    kappa = "" if answers["kappa"] is None else f", kappa {answers['kappa']:.2f}"
    agreed = "" if answers["agreement"] is None else f"; pairs of raters agree in {answers['agreement']:.0%}{kappa}"
    ties = f"; {answers['ties']} ties count half" if answers["ties"] else ""
    return (
        f"{question} {counted['a']}: {answers['a_share']:.1%} of {answers['prompts']} prompts by majority "
        f"(95% interval {low:.1%} to {high:.1%}), {counted['b']}: {1 - answers['a_share']:.1%}{ties}{agreed}"
    )


def markdown(counted: Mapping) -> str:
    """The same as Markdown."""
    rows = [
        f"| {_cell(rater)} | {one['votes']} | {one['left_share']:.0%} | {one['median_seconds']:.1f} s |"
        for rater, one in counted["raters"].items()
    ]
    spread = [
        f"- {QUESTIONS[name]} Raters for {_cell(counted['a'])}: "
        + ", ".join(f"{votes} at {prompts} prompts" for votes, prompts in answers["a_votes"].items())
        for name, answers in counted["questions"].items()
        if answers["prompts"]
    ]
    return "\n".join([
        f"# {_cell(counted['a'])} against {_cell(counted['b'])}, by people", "",
        *(f"- {_cell(line)}" for line in lines(counted)), *spread, "",
        "| rater | votes | chose left | median time |", "|---|---|---|---|", *rows, "",
        f"Sheet `{counted['sheet']}`, {counted['prompts']} prompts. Ties count half. Intervals: bootstrap over prompts.", "",
    ])  # fmt: skip


def _cell(text: str) -> str:
    """Text of a stranger within Markdown."""
    return "".join(f"\\{one}" if one in "\\|<>[]`*_#" else one for one in " ".join(text.split()))
