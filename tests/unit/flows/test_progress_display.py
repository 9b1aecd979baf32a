"""The output of parallel stages: progress bars in a terminal, lines in a log."""

from flows.run_local import PROGRESS, ProgressDisplay
from thousandwords.core.progress import ProgressBar


def test_in_a_terminal_progress_lines_become_bars_and_others_are_shown(capsys):
    bar = ProgressBar("train_generator", 1200)
    bar.update(400)
    line = bar._line(401, "loss 2.1034", bar.started + 2.0)
    assert PROGRESS.fullmatch(line).groups() == ("train_generator", "401", "1200", "step", "loss 2.1034")
    display = ProgressDisplay()
    display.is_terminal = True
    display.start("train_generator")
    display.show_line("train_generator", line)
    (stage_bar,) = display.bars["train_generator"].values()
    assert (stage_bar.n, stage_bar.total) == (401, 1200)
    display.show_line("train_generator", "a warning")
    display.end("train_generator")
    output = capsys.readouterr().err
    assert "33%" in output and "loss 2.1034" in output and "train_generator: a warning\n" in output


def test_in_a_log_each_line_names_its_stage_and_the_usual_lines_of_dvc_are_left_out(capsys):
    display = ProgressDisplay()
    for line in ("Running stage 'a':", "> python -m stages.a", "Stage 'a' didn't change, skipping"):
        display.show_line("a", line)
    for line in ("a: 1/2 (50 %), 1.0 row/s, 0:01 left", "odd", "ERROR: failed"):
        display.show_line("a", line)
    assert capsys.readouterr().err == "a: 1/2 (50 %), 1.0 row/s, 0:01 left\na: odd\na: ERROR: failed\n"
