"""A dvc.lock that cannot be read is one sentence with the fix, in every command that reads it."""

import pytest

from scripts import verify_artifacts


@pytest.mark.parametrize("option", [[], ["--repair"]])
@pytest.mark.parametrize("lock", ["<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> theirs\n", "only text\n"])
def test_a_lock_file_that_cannot_be_read_is_named_with_the_fix(tmp_path, monkeypatch, capsys, lock, option):
    (tmp_path / "dvc.lock").write_text(lock)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        verify_artifacts.main(option)
    message = capsys.readouterr().err
    assert caught.value.code == 2 and message.startswith("verify: dvc.lock is not valid (")
    assert "git checkout --theirs dvc.lock; else run: python -m flows.dvc.repair" in message
