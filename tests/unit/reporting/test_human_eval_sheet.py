"""A blind vote: the sheet does not reveal the runs, shows any caption safely, and its votes are counted as they were given."""

import base64
import csv
import hashlib
import html
import io
import json
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.two_runs import write_run, write_scores
from thousandwords.__main__ import main
from thousandwords.core.errors import UserError
from thousandwords.evaluation.metrics import bootstrap_interval
from thousandwords.reporting import human_eval_votes
from thousandwords.reporting.finished_run import read_run
from thousandwords.reporting.human_eval_sheet import make_sheet, render_sheet
from thousandwords.reporting.human_eval_votes import agreement, count_votes, lines, markdown, read_votes

CAPTIONS = [f"image {number}" for number in range(12)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, grays = tmp_path_factory.mktemp("runs"), {"run-x": 10, "run-y": 100}
    return tuple(read_run(write_run(folder / name, CAPTIONS, gray), name) for name, gray in grays.items())


@pytest.fixture(scope="module")
def sheet(runs) -> tuple[str, dict]:
    """(a sheet of all captions, its key)"""
    return make_sheet(*runs, num_prompts=50, seed=7)


@pytest.fixture(scope="module")
def key(sheet) -> dict:
    return sheet[1]


def data_of(page: str) -> dict:
    """The data that the page's script reads."""
    script = re.search(r'<script type="application/json" id="sheet">(.*?)</script>', page, re.DOTALL)
    return json.loads(script[1])


def image_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def rows_of(key: dict, rater: str, choose=lambda number, question: "a", /, **changes: object) -> list[dict]:
    """The votes of a rater who chooses a run ("a" or "b") by prompt and question."""
    rows = []
    for prompt in key["prompts"]:
        vote = {"sheet": key["sheet"], "rater": rater, "prompt_number": prompt["number"]}
        vote |= {"caption": prompt["caption"], "seconds": 2.5}
        for question in human_eval_votes.QUESTIONS:
            side = "left" if prompt["left"] == choose(prompt["number"], question) else "right"
            rows.append({**vote, "question": question, "side": side, **changes})
    return rows


def write_votes(path, rows: list[dict]):
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, human_eval_votes.COLUMNS, quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
    return path


def count(folder, key: dict, voters: dict) -> dict:
    """The counted votes of raters, {name: how the rater chooses}, each from a file of its own."""
    files = [
        write_votes(folder / f"{n}.csv", rows_of(key, name, voters[name])) for n, name in enumerate(voters)
    ]
    return count_votes(read_votes(files, key), key, np.random.default_rng(0))


def test_the_key_says_which_side_shows_which_run(sheet):
    """The gray level is 11 in the best images of run x and 101 in those of run y."""
    page, key = sheet
    pairs = data_of(page)["pairs"]
    assert [pair["caption"] for pair in pairs] == [prompt["caption"] for prompt in key["prompts"]]
    assert sorted(pair["caption"] for pair in pairs) == sorted(CAPTIONS)
    for pair, prompt in zip(pairs, key["prompts"], strict=True):
        levels = [image_of(pair[side]).getpixel((0, 0))[0] for side in ("left", "right")]
        assert levels == ([11, 101] if prompt["left"] == "a" else [101, 11])
    assert (key["a"], key["b"], key["seed"], key["sheet"]) == ("run-x", "run-y", 7, data_of(page)["id"])


def test_order_sides_and_choice_depend_on_the_seed(runs):
    sheets = {seed: make_sheet(*runs, num_prompts=6, seed=seed) for seed in range(8)}
    assert make_sheet(*runs, num_prompts=6, seed=3) == sheets[3]
    assert len({tuple(prompt["caption"] for prompt in key["prompts"]) for _, key in sheets.values()}) == 8
    assert {prompt["left"] for _, key in sheets.values() for prompt in key["prompts"]} == {"a", "b"}
    assert len({key["sheet"] for _, key in sheets.values()}) == 8


@pytest.mark.paper("evaluation: human study")
def test_the_sheet_alone_does_not_reveal_the_runs(runs, sheet):
    """With the runs in the other order, only the sides of the images change, and the id that depends on them."""
    (page, key), (swapped, other) = sheet, make_sheet(*reversed(runs), 50, seed=7)

    first, second = data_of(page), data_of(swapped)
    assert [(pair["caption"], pair["left"], pair["right"]) for pair in first["pairs"]] == [
        (pair["caption"], pair["right"], pair["left"]) for pair in second["pairs"]
    ]
    texts = [page.replace(first["id"], ""), swapped.replace(second["id"], "")]
    for pair in first["pairs"]:
        texts = [text.replace(pair["left"], "IMAGE").replace(pair["right"], "IMAGE") for text in texts]
    assert texts[0] == texts[1] and first["id"] != second["id"]
    assert [prompt["left"] for prompt in key["prompts"]] == [prompt["left"] for prompt in other["prompts"]]
    assert not re.search(r"run-[xy]|seed|score|0\.3", texts[0].replace("performance", ""))


def test_images_have_one_size_and_no_metadata(tmp_path):
    folders = [write_run(tmp_path / str(size), CAPTIONS, size, image_size=size) for size in (8, 32)]
    keys_of_every_webp = {"loop", "background", "timestamp", "duration"}
    page, _ = make_sheet(*[read_run(folder, "run") for folder in folders], 50, seed=0)
    for uri in (pair[side] for pair in data_of(page)["pairs"] for side in ("left", "right")):
        image = image_of(uri)
        assert (image.size, image.format, set(image.info) - keys_of_every_webp) == ((32, 32), "WEBP", set())


def test_runs_with_the_same_images_are_rejected(tmp_path):
    runs = [read_run(write_run(tmp_path / str(n), CAPTIONS[: n + 2], 10), f"run {n}") for n in range(2)]
    with pytest.raises(UserError, match="run 0 and run 1 have the same best image for each prompt: there"):
        make_sheet(*runs, 50, seed=0)


def test_the_key_has_the_number_of_pairs_that_were_left_out_because_they_are_identical(tmp_path):
    folders = [write_run(tmp_path / str(gray), CAPTIONS, gray) for gray in (10, 11)]
    scores = np.tile(np.float32([0.1, 0.3, 0.2]), (12, 1))
    scores[:5] = [0.3, 0.1, 0.2]  # the first candidate of one run is the middle one of the other
    write_scores(folders[1], scores)
    _, key = make_sheet(*(read_run(folder, folder.name) for folder in folders), 50, seed=0)
    assert key["left_out_because_alike"] == 5
    assert sorted(prompt["caption"] for prompt in key["prompts"]) == sorted(CAPTIONS[5:])


@given(st.text(min_size=1, max_size=60))
@example("<!--<script>")
@example("</script><script>alert(1)</script> & <b>'\"\u2028")
@example("{{ 7 * 7 }}")
@settings(max_examples=60, deadline=None)
def test_any_caption_is_unchanged_on_the_page(caption):
    page = render_sheet("0", [{"caption": caption, "left": "", "right": ""}], True)
    assert data_of(page)["pairs"][0]["caption"] == caption
    assert page.count("<script") == page.count("</script>") == 2 and "<!--" not in page and "<b>" not in page


def test_the_policy_allows_the_one_script_and_nothing_else(sheet):
    page, _ = sheet
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page)[1])
    sources = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert policy == f"{sources}; script-src 'sha256-{sha256}'"
    assert not re.findall(r"\son[a-z]+=", page) and "http" not in page.replace("http-equiv", "")


def always_a(number: int, question: str) -> str:
    return "a"


def test_votes_for_one_run_only_give_it_a_share_of_1(key, tmp_path):
    result = count(tmp_path, key, dict.fromkeys("vwxyz", always_a))
    for answers in result["questions"].values():
        assert answers == {
            **{"prompts": 12, "a_share": 1.0, "interval": [1.0, 1.0], "ties": 0, "a_votes": {"5 of 5": 12}},
            **{"agreement": 1.0, "kappa": None},
        }
    assert result["missing"] == {} and len(lines(result)) == 2
    first = "Which is more realistic? run-x: 100.0% of 12 prompts by majority (95% "
    assert lines(result)[0].startswith(first)


@pytest.mark.paper("evaluation: human study")
def test_a_prompt_goes_to_the_run_that_most_of_five_raters_chose(key, tmp_path):
    table = np.random.default_rng(1).random((12, 5)) < 0.6
    choices = [lambda number, _, votes=votes: "a" if votes[number - 1] else "b" for votes in table.T]
    answers = count(tmp_path, key, dict(zip("vwxyz", choices, strict=True)))["questions"]["realism"]
    majorities = table.sum(axis=1) >= 3
    assert answers["a_share"] == majorities.mean() and answers["ties"] == 0
    assert answers["interval"] == bootstrap_interval(majorities, np.random.default_rng(0))


def test_questions_are_counted_separately_and_a_tie_counts_half(key, tmp_path):
    voters = {"Ann": always_a, "Ben": lambda number, question: "ab"[question == "caption"]}
    result = count(tmp_path, key, voters)
    realism, caption = (result["questions"][name] for name in ("realism", "caption"))
    assert (realism["a_share"], realism["ties"], caption["a_share"], caption["ties"]) == (1.0, 0, 0.5, 12)
    assert (caption["agreement"], caption["kappa"]) == (0.0, -1.0)
    assert "12 ties count half" in lines(result)[1]
    assert lines(result)[2] == "only 2 of 5 raters: the paper had 5, so few may not be representative"


def test_agreement_is_fleiss_kappa():
    """Ten raters, five prompts, two categories: computed by hand."""
    result = agreement([(10, 10), (5, 10), (0, 10), (8, 10), (2, 10)])
    assert result["agreement"] == pytest.approx((1 + 20 / 45 + 1 + 29 / 45 + 29 / 45) / 5)
    assert result["kappa"] == pytest.approx((result["agreement"] - 0.5) / 0.5)
    assert agreement([(1, 1), (0, 1)]) == {"agreement": None, "kappa": None}


def test_a_rater_with_missing_votes_is_named_and_the_other_votes_are_counted(key, tmp_path):
    votes = read_votes([write_votes(tmp_path / "ann.csv", rows_of(key, "Ann")[:-3])], key)
    result = count_votes(votes, key, np.random.default_rng(0))
    assert result["missing"] == {"Ann": ["11 caption", "12 realism", "12 caption"]}
    assert result["questions"]["realism"]["prompts"] == 11 and result["questions"]["caption"]["prompts"] == 10
    line = "Ann left out 3 votes (prompt 11 caption, 12 realism, 12 caption); the others are counted"
    assert line in lines(result)
    assert result["raters"]["Ann"]["votes"] == 21 and result["raters"]["Ann"]["median_seconds"] == 2.5


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sheet", "0123", r"votes.csv belongs to the sheet '0123', but the key to '[0-9a-f]{16}'"),
        ("prompt_number", 99, r"votes.csv, row 2: the sheet has no prompt '99'"),
        ("caption", "a dog", r"votes.csv, row 2: prompt 1 is 'image \d+', not 'a dog'"),
        ("question", "colour", r"row 2: there is no question 'colour'; it can be: realism, caption"),
        ("question", "realism", "row 3: the second vote on one question"),
        ("side", "both", r"votes.csv, row 2: the side is 'both'; it can be: left, right"),
        ("seconds", "nan", r"votes.csv, row 2: 'nan' is not a number of seconds"),
        ("rater", " ", r"votes.csv, row 2: there is no rater's name"),
    ],
)
def test_votes_that_do_not_belong_to_the_sheet_are_rejected_row_by_row(key, tmp_path, column, value, message):
    file = write_votes(tmp_path / "votes.csv", rows_of(key, "Ann", **{column: value}))
    with pytest.raises(UserError, match="these votes cannot be counted:\n.*" + message):
        read_votes([file], key)


@pytest.mark.parametrize("second", ["ann ", "Ann"])
def test_a_rater_counts_once(key, tmp_path, second):
    message = rf"1.csv: '{second.strip()}' has voted in .*0.csv already; keep one of both"
    files = [write_votes(tmp_path / f"{n}.csv", rows_of(key, name)) for n, name in enumerate(("Ann", second))]
    with pytest.raises(UserError, match=message):
        read_votes(files, key)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"a;b\n1;2\n", "lacks the column 'sheet'; give a CSV file that the sheet saved"),
        (b"\xff\xfe\x00", r"cannot be read \(UnicodeDecodeError\)"),
        (b"", "lacks the column 'sheet'"),
        ((",".join(human_eval_votes.COLUMNS) + "\n").encode(), "there is no vote in these files"),
        (None, r"cannot be read \(FileNotFoundError\)"),
    ],
)
def test_a_file_that_is_no_file_of_votes_is_rejected(key, tmp_path, data, message):
    if data is not None:
        (tmp_path / "v.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_votes([tmp_path / "v.csv"], key)


def test_a_table_saved_by_another_program_is_read(key, tmp_path):
    """Such programs may write a byte order mark and no quotes."""
    file = write_votes(tmp_path / "v.csv", rows_of(key, "Ann"))
    file.write_text("\ufeff" + file.read_text("utf-8").replace('"', ""), encoding="utf-8")
    assert len(read_votes([file], key)) == 24


def test_names_of_raters_are_escaped_in_markdown(key, tmp_path):
    result = count(tmp_path, key, {"Ann | <b>": always_a})
    assert "| Ann \\| \\<b\\> | 24 |" in markdown(result)


def test_the_commands_make_a_sheet_and_count_its_votes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, gray in (("old", 10), ("new", 90)):
        write_run(tmp_path / name, CAPTIONS, gray)
    main(["human-eval-sheet", "--a", "old", "--b", "new", "--out", "sheet.html", "--prompts", "5"])
    key = json.loads((tmp_path / "sheet-key.json").read_bytes())
    assert "5 pairs" in capsys.readouterr().out and len(key["prompts"]) == 5
    assert data_of((tmp_path / "sheet.html").read_text())["id"] == key["sheet"]

    write_votes(tmp_path / "ann.csv", rows_of(key, "Ann", lambda number, _: "b"))
    main(["human-eval-votes", "--key", "sheet-key.json", "ann.csv", "--out", "votes.json"])
    assert json.loads((tmp_path / "votes.json").read_bytes())["questions"]["realism"]["a_share"] == 0.0
    assert "0.0% of 5 prompts" in capsys.readouterr().out
    assert (tmp_path / "votes.md").read_text().startswith("# old against new")


@pytest.mark.parametrize(
    "data, message",
    [(None, "there is no file"), (b"[]", "is not the key of a"), (b"{", "is not the key of a")],
)
def test_a_file_that_is_no_key_is_rejected(tmp_path, capsys, data, message):
    if data is not None:
        (tmp_path / "key.json").write_bytes(data)
    with pytest.raises(SystemExit) as end:
        main(["human-eval-votes", "--key", str(tmp_path / "key.json"), "x.csv"])
    assert end.value.code == 2 and message in capsys.readouterr().err
