"""What several of these files ask for: a current folder of their own, and chunks of few rows."""

from pathlib import Path

import pytest

from truefit.ingest import split


@pytest.fixture
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "SPLIT_CHUNK_ROWS", 7)
