"""The figures of each prompt: written, read, and paired over the prompts of two runs."""

from types import SimpleNamespace

import numpy as np

from thousandwords.evaluation.prompt_figures import paired, prompt_csv, read_prompts


def test_a_prompt_has_its_mean_candidate_and_its_best_scored_one(tmp_path):
    prompts, splits = ["a red star", "a cat, asleep"], ["unseen", "own"]
    samples = SimpleNamespace(prompts=prompts, splits=splits, text_only_prompts=lambda: [0, 1])
    matches = {0: [{"color": True, "shape": True}, {"color": True, "shape": False}]}
    data = prompt_csv(samples, np.array([[0.25, 0.5], [0.125, 0.0625]]), matches)
    assert data.decode().splitlines() == [
        "prompt,split,clip_score.n1,clip_score.best,caption_match.n1,caption_match.best",
        "a red star,unseen,0.375,0.5,0.5,0",
        '"a cat, asleep",own,0.09375,0.125,,',
    ]
    (tmp_path / "prompts.csv").write_bytes(data)
    rows = read_prompts(tmp_path / "prompts.csv")
    assert paired(rows, rows, "clip_score.best").tolist() == [[0.5, 0.125]] * 2
    assert paired(rows, rows, "caption_match.unseen.all.n1").tolist() == [[0.5]] * 2
    assert paired(rows, rows, "caption_match.seen.all.n1").shape == (2, 0)
    assert read_prompts(tmp_path / "none.csv") == {}
