"""What `main` makes of errors, apart from any command."""

from __future__ import annotations

import pytest

from gdfq_export.cli import main
from gdfq_export.errors import LostProcessError


@pytest.mark.parametrize(("rank", "said"), [(None, True), ("0", True), ("1", False)])
def test_of_the_processes_that_are_left_the_first_alone_says_that_one_is_lost(
    rank: str | None, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class LostNcclProcessError(LostProcessError):
        """A kind of it, under another name."""

    def lost() -> None:
        raise LostNcclProcessError("another process ended")

    monkeypatch.setattr("gdfq_export.models.table.all_models", lost)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert main(["models"]) == 1
    assert ("another process ended" in capsys.readouterr().err) is said
