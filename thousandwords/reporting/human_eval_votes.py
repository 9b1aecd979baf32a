"""Count the votes on a human evaluation sheet: CSV files and the sheet's key in, shares with intervals out.

A prompt goes to the run that most of its raters chose, as in the paper's best-of-five vote (arXiv 2102.12092,
section 3); if they are split evenly, each run gets half. Also computed: how far raters agree, and signs of a
rater who did not look (always the same side, no time at all).
"""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thousandwords.core.errors import UserError
from thousandwords.evaluation.metrics import bootstrap_interval

QUESTIONS = {"realism": "Which is more realistic?", "caption": "Which better matches the caption?"}
# of a CSV file of votes
COLUMNS = ("sheet", "rater", "prompt_number", "caption", "question", "side", "seconds")
SIDES = ("left", "right")
PAPER_RATERS = 5
MAX_LISTED = 5  # missing votes of a rater that are listed one by one
MAX_PROBLEMS = 20  # problems in files that are listed one by one


@dataclass(frozen=True)
class Vote:
    """One answer: which run ("a" or "b") a rater chose, and on which side it was."""

    rater: str
    number: int
    question: str
    run: str
    side: str
    seconds: float


def read_votes(files: Sequence[Path], key: Mapping) -> list[Vote]:
    """Read all votes. Raises UserError that names each line that does not belong to this sheet, and each
    rater with votes in two files."""
    votes, problems, file_of_rater = [], [], {}
    for path in map(Path, files):
        votes_of_file, problems_of_file = _read_file(path, key)
        votes += votes_of_file
        problems += problems_of_file
        for rater in dict.fromkeys(vote.rater for vote in votes_of_file):
            if earlier := file_of_rater.get(rater.casefold()):
                problems.append(f"{path}: {rater!r} has voted in {earlier} already; keep one of both")
            file_of_rater[rater.casefold()] = path
    if problems:
        more = f"\n  and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise UserError("these votes cannot be counted:\n  " + "\n  ".join(problems[:MAX_PROBLEMS]) + more)
    if not votes:
        raise UserError("there is no vote in these files. Give the CSV files that the sheet saved")
    return votes


def _read_file(path: Path, key: Mapping) -> tuple[list[Vote], list[str]]:
    """(the votes of one file, its problems)."""
    fix = "give a CSV file that the sheet saved"
    try:
        table = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
        missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
        rows = list(table)
    except (OSError, UnicodeDecodeError) as error:
        return [], [f"{path} cannot be read ({error.__class__.__name__}); {fix}"]
    except csv.Error as error:
        return [], [f"{path} is not a CSV file ({error}); {fix}"]
    if missing:
        return [], [f"{path} lacks the column {missing[0]!r}; {fix}"]
    if others := sorted({str(row["sheet"]) for row in rows} - {key["sheet"]}):
        return [], [f"{path} belongs to the sheet {others[0]!r}, but the key to {key['sheet']!r}"]
    prompts = {str(prompt["number"]): prompt for prompt in key["prompts"]}
    votes: dict[tuple, Vote] = {}
    problems = []
    for line, row in enumerate(rows, start=2):
        try:
            vote = _vote(row, prompts)
            if (vote.rater, vote.number, vote.question) in votes:
                raise ValueError("the second vote on one question")
            votes[vote.rater, vote.number, vote.question] = vote
        except ValueError as problem:
            problems.append(f"{path}, row {line}: {problem}")
    return [*votes.values()], problems


def _vote(row: Mapping, prompts: Mapping[str, Mapping]) -> Vote:
    """The vote of a row; raises ValueError that says what is wrong with it."""
    rater, number, side = " ".join((row["rater"] or "").split()), row["prompt_number"], row["side"]
    if not rater:
        raise ValueError("there is no rater's name")
    if number not in prompts:
        raise ValueError(f"the sheet has no prompt {number!r}")
    if row["caption"] != prompts[number]["caption"]:
        raise ValueError(f"prompt {number} is {prompts[number]['caption']!r}, not {row['caption']!r}")
    if row["question"] not in QUESTIONS:
        raise ValueError(f"there is no question {row['question']!r}; it can be: {', '.join(QUESTIONS)}")
    if side not in SIDES:
        raise ValueError(f"the side is {side!r}; it can be: {', '.join(SIDES)}")
    try:
        seconds = float(row["seconds"])
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{row['seconds']!r} is not a number of seconds")
    left = prompts[number]["left"]
    run = left if side == "left" else "ab".replace(left, "")
    return Vote(rater, int(number), row["question"], run, side, seconds)


def count_votes(votes: Sequence[Vote], key: Mapping, rng: np.random.Generator) -> dict:
    """The content of votes.json: shares of `a` per question, agreement, raters and their missing votes."""
    raters = {rater: [] for rater in sorted({vote.rater for vote in votes})}
    for vote in votes:
        raters[vote.rater].append(vote)
    questions = {name: [vote for vote in votes if vote.question == name] for name in QUESTIONS}
    missing = {rater: _missing(own, key) for rater, own in raters.items()}
    return {
        **{name: key[name] for name in ("sheet", "a", "b")},
        "prompts": len(key["prompts"]),
        "questions": {name: _answers(own, rng) for name, own in questions.items()},
        "raters": {rater: _rater(own) for rater, own in raters.items()},
        "missing": {rater: names for rater, names in missing.items() if names},
    }


def _answers(votes: Sequence[Vote], rng: np.random.Generator) -> dict:
    """The answers to one question; `a_votes` is {"k of R": number of prompts}."""
    if not votes:
        return {"prompts": 0}
    raters = Counter(vote.number for vote in votes)
    for_a = Counter(vote.number for vote in votes if vote.run == "a")
    table = [(for_a[number], count) for number, count in raters.items()]  # of each prompt: votes for a, votes
    majorities = np.array([0.5 if 2 * chose_a == count else 2 * chose_a > count for chose_a, count in table])
    return {
        "prompts": len(table),
        "a_share": float(majorities.mean()),
        "interval": bootstrap_interval(majorities, rng),
        "ties": int((majorities == 0.5).sum()),
        "a_votes": {
            f"{chosen} of {count}": prompts for (chosen, count), prompts in sorted(Counter(table).items())
        },
        **agreement(table),
    }


def agreement(table: Sequence[tuple[int, int]]) -> dict[str, float | None]:
    """How far raters agree: {"agreement": share of pairs of raters who chose the same, "kappa": Fleiss'
    kappa}, over prompts with two raters or more; None where there is none, or where chance alone gives full
    agreement."""
    table = [(chose_a, count) for chose_a, count in table if count > 1]
    if not table:
        return {"agreement": None, "kappa": None}
    observed = statistics.mean((k * (k - 1) + (n - k) * (n - k - 1)) / (n * (n - 1)) for k, n in table)
    a_share = sum(k for k, _ in table) / sum(n for _, n in table)
    chance = a_share**2 + (1 - a_share) ** 2
    return {"agreement": observed, "kappa": None if chance == 1 else (observed - chance) / (1 - chance)}


def _rater(votes: Sequence[Vote]) -> dict:
    """Signs of whether a rater looked at the images."""
    return {
        "votes": len(votes),
        "left_share": sum(vote.side == "left" for vote in votes) / len(votes),
        "median_seconds": statistics.median(vote.seconds for vote in votes),
    }


def _missing(votes: Sequence[Vote], key: Mapping) -> list[str]:
    """["3 realism", ...]: what the rater of these votes has not answered."""
    answered = {(vote.number, vote.question) for vote in votes}
    questions = [(prompt["number"], question) for prompt in key["prompts"] for question in QUESTIONS]
    return [f"{number} {question}" for number, question in questions if (number, question) not in answered]


def lines(result: Mapping) -> list[str]:
    """The result of `count_votes` as text: one line per question, then notes about the raters."""
    texts = [_line(QUESTIONS[name], answers, result) for name, answers in result["questions"].items()]
    num_raters = len(result["raters"])
    if num_raters < PAPER_RATERS:
        few = f"only {num_raters} of {PAPER_RATERS} raters: the paper had {PAPER_RATERS}, so few may not be representative"
        texts.append(few)
    for rater, missing in result["missing"].items():
        more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
        listed = f"prompt {', '.join(missing[:MAX_LISTED])}{more}"
        texts.append(f"{rater} left out {len(missing)} votes ({listed}); the others are counted")
    return texts


def _line(question: str, answers: Mapping, result: Mapping) -> str:
    if not answers["prompts"]:
        return f"{question} There are no answers."
    low, high = answers["interval"]
    ties = f"; {answers['ties']} ties count half" if answers["ties"] else ""
    agreed = "" if answers["agreement"] is None else f"; pairs of raters agree in {answers['agreement']:.0%}"
    kappa = "" if answers["kappa"] is None else f", kappa {answers['kappa']:.2f}"
    return (
        f"{question} {result['a']}: {answers['a_share']:.1%} of {answers['prompts']} prompts by majority "
        f"(95% interval {low:.1%} to {high:.1%}), {result['b']}: {1 - answers['a_share']:.1%}{ties}{agreed}{kappa}"
    )


def markdown(result: Mapping) -> str:
    """The result of `count_votes` as Markdown."""
    notes = [f"- {_escape(line)}" for line in lines(result)]
    for name, answers in result["questions"].items():
        if answers["prompts"]:
            counts = answers["a_votes"].items()
            votes = ", ".join(f"{votes} at {prompts} prompts" for votes, prompts in counts)
            notes.append(f"- {QUESTIONS[name]} Raters for {_escape(result['a'])}: {votes}")
    raters = "".join(
        f"| {_escape(rater)} | {row['votes']} | {row['left_share']:.0%} | {row['median_seconds']:.1f} s |\n"
        for rater, row in result["raters"].items()
    )
    return (
        f"# {_escape(result['a'])} against {_escape(result['b'])}, by people\n\n"
        + "\n".join(notes)
        + f"\n\n| rater | votes | chose left | median time |\n|---|---|---|---|\n{raters}\n"
        f"Sheet `{result['sheet']}`, {result['prompts']} prompts. Ties count half. Intervals: bootstrap over prompts.\n"
    )


def _escape(text: str) -> str:
    """Text from outside, such as a rater's name, escaped for Markdown."""
    return "".join(f"\\{char}" if char in "\\|<>[]`*_#" else char for char in " ".join(text.split()))
