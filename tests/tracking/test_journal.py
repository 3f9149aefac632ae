"""The journal of a run: what it keeps, what a kill leaves of it, and what it refuses without running anything."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from workspace import ROOT

from truefit.core.errors import TrackingError
from truefit.tracking import journal as module
from truefit.tracking.journal import JOURNAL, Artifact, Header, Journal, Metrics, Record, Sent, Status, Values, pending

KEY = "0123456789abcdef" * 2
TAGS = Values(kind="tags", values={"own": "tag"})


def header(**changes: Any) -> Header:
    content = {"key": KEY, "store": None, "experiment": "e", "name": "n", "start_time": 5, "tags": {}, **changes}
    return Header.model_validate(content)


def create(runs: Path, artifacts: dict[str, bytes] | None = None, **changes: Any) -> Journal:
    return Journal.create(runs, header(**changes), [TAGS], artifacts or {})


def metrics(step: int) -> Metrics:
    return Metrics(step=step, time=1000 + step, values={"loss": 1 / 3 / step, "speed": 1e300})


def records(journal: Journal, offset: int = 0) -> list[Any]:
    return [record for record, _ in journal.read(offset)]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    journal = create(tmp_path, {"record/a.txt": b"content"}, tags={"who": "me"}, fingerprint="f" * 64)
    written: list[Record] = [
        metrics(1),
        metrics(2),
        Values(kind="params", values={"a": "1"}),
        Status(status="FINISHED", time=9, final=True),
    ]
    for record in written:
        journal.append(record)
    journal.append_artifact("state_dict/best.pt", b"\x00\xff")
    journal.close()
    again = Journal(tmp_path / KEY)
    assert again.header == header(tags={"who": "me"}, fingerprint="f" * 64)
    tags, first, *others, last = records(again)
    assert tags == TAGS
    assert others == written
    assert again.artifact(first).read_bytes() == b"content"
    assert again.artifact(last).read_bytes() == b"\x00\xff"
    assert again.final


def test_reading_goes_on_behind_an_offset(tmp_path: Path) -> None:
    journal = create(tmp_path)
    journal.append(metrics(1))
    offset = [offset for _, offset in journal.read()][-1]
    journal.append(metrics(2))
    journal.close()
    assert records(journal, offset) == [metrics(2)]


def test_a_line_torn_by_a_kill_is_left_out_and_then_cut_off(tmp_path: Path) -> None:
    journal = create(tmp_path)
    journal.append(metrics(1))
    journal.close()
    with (tmp_path / KEY / JOURNAL).open("ab") as file:
        file.write(b'{"kind":"metrics","step":2,"ti')
    again = Journal(tmp_path / KEY)
    assert records(again) == [TAGS, metrics(1)]
    again.append(metrics(2))
    again.close()
    assert records(again) == [TAGS, metrics(1), metrics(2)]


def test_a_run_appears_with_its_whole_origin_or_not_at_all(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from truefit.tracking import journal as j\n"
        "def kill(path, content): os.kill(os.getpid(), 9)\n"
        "original = j.write_bytes\n"
        "j.write_bytes = lambda path, content: (kill if path.name == j.JOURNAL else original)(path, content)\n"
        f"h = j.Header(key='{KEY}', store=None, experiment='e', name='n', start_time=5, tags={{}})\n"
        "j.Journal.create(Path(sys.argv[1]), h, [], {'record/a': b'x'})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / KEY / "artifacts/record/a").exists()
    assert pending(tmp_path) == []


def test_what_is_pending_comes_oldest_first(tmp_path: Path) -> None:
    for number, begun in enumerate([30, 10, 20]):
        create(tmp_path, key=f"{number}" * 32, start_time=begun)
    assert [journal.header.start_time for journal in pending(tmp_path)] == [10, 20, 30]


def test_of_the_same_millisecond_a_training_comes_before_an_evaluation(tmp_path: Path) -> None:
    for number in range(8):
        create(tmp_path, key=f"{number}" * 32, completes=None if number % 2 else "f" * 64)
    assert [journal.header.completes is None for journal in pending(tmp_path)] == [True] * 4 + [False] * 4


def test_records_reach_the_disk_at_most_once_a_second_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = create(tmp_path)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for step in range(1, 100):
        journal.append(metrics(step))
    assert synced == []
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    journal.append(metrics(100))
    assert len(synced) == 1
    journal.close()
    assert len(synced) == 2


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        create(tmp_path, {"record/a": b""})
    finally:
        os.umask(former)
    for name in (JOURNAL, "artifacts/record/a"):
        assert (tmp_path / KEY / name).stat().st_mode & 0o777 == 0o640


# --- how far it was sent


def test_what_was_sent_is_kept_and_damage_to_it_means_from_the_beginning(tmp_path: Path) -> None:
    journal = create(tmp_path)
    end = [offset for _, offset in journal.read()][-1]
    journal.save_sent(Sent(run_id="r", offset=end))
    with journal.sending() as sent:
        assert sent == Sent(run_id="r", offset=end)
    for damage in (b"{}]", b'{"offset": -1}', json.dumps({"run_id": "r", "offset": end - 1}).encode(), b"\xff"):
        (tmp_path / KEY / "sent.json").write_bytes(damage)
        with journal.sending() as sent:
            assert sent == Sent()


def test_one_process_sends_a_journal_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2)
    journal = create(tmp_path)
    with journal.sending(), pytest.raises(TrackingError, match=r"being sent by another process$"), journal.sending():
        pass
    with journal.sending():
        journal.remove()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError), journal.sending():
        pass


def test_one_who_waits_for_a_journal_that_is_sent_to_the_end_meanwhile_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    journal = create(tmp_path)

    def wait_and_send() -> None:
        with journal.sending():
            pass

    with ThreadPoolExecutor() as pool:
        with journal.sending():
            waiting = pool.submit(wait_and_send)
            time.sleep(0.3)
            journal.remove()
        assert isinstance(waiting.exception(), FileNotFoundError)
    assert list(tmp_path.iterdir()) == []


# --- what is refused


class Malicious:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.place),))


def test_a_pickle_planted_as_a_journal_is_refused_without_running(tmp_path: Path) -> None:
    (tmp_path / KEY).mkdir()
    (tmp_path / KEY / JOURNAL).write_bytes(pickle.dumps(Malicious(tmp_path / "planted")))
    with pytest.raises(TrackingError, match=rf"^{tmp_path / KEY / JOURNAL}: line 1: damaged: Invalid JSON") as caught:
        pending(tmp_path)
    assert str(caught.value).endswith(f"; remove {tmp_path / KEY} to give the run up")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "../../../etc"},
        {"key": KEY.upper()},
        {"completes": "' or 1=1; drop table runs; --"},
        {"fingerprint": "f" * 63 + "'"},
        {"format": 2},
        {"start_time": "5"},
        {"start_time": 2**63},
        {"tags": {"a": 1}},
        {"command": "rm"},
    ],
)
def test_a_header_that_is_not_one_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    journal = create(tmp_path)
    content = header().model_dump() | changes
    (tmp_path / KEY / JOURNAL).write_text(json.dumps(content) + "\n")
    with pytest.raises(TrackingError, match=": line 1: damaged: "):
        Journal(journal.folder)


def test_a_header_in_another_runs_folder_is_refused(tmp_path: Path) -> None:
    create(tmp_path).folder.rename(tmp_path / ("1" * 32))
    with pytest.raises(TrackingError, match=f"line 1: found the key {KEY}, allowed: the folder's name"):
        pending(tmp_path)


METRICS = {"kind": "metrics", "step": 1, "time": 1, "values": {"loss": 1.0}}
ARTIFACT = {"kind": "artifact", "name": "record/a", "sha256": "0" * 64}


@pytest.mark.parametrize(
    "line",
    [
        b"\x80\x04\x95",
        b"[]",
        json.dumps(METRICS | {"kind": "exec"}).encode(),
        json.dumps(METRICS | {"values": {"loss": float("nan")}}).encode(),
        json.dumps(METRICS | {"values": {"loss": "1"}}).encode(),
        json.dumps(METRICS | {"step": -1}).encode(),
        json.dumps(METRICS | {"more": 1}).encode(),
        *(
            json.dumps(ARTIFACT | {"name": name}).encode()
            for name in ("../a/b", "/etc/passwd", "a", "a/../../b", "a//b", "a/\n")
        ),
        json.dumps(ARTIFACT | {"sha256": "../" * 21 + "x"}).encode(),
        json.dumps({"kind": "dataset", "values": {"name": "x"}}).encode(),
        json.dumps({"kind": "status", "status": "DELETED", "time": 1, "final": True}).encode(),
    ],
)
def test_a_line_that_is_no_record_is_refused_by_its_number(tmp_path: Path, line: bytes) -> None:
    journal = create(tmp_path)
    with (tmp_path / KEY / JOURNAL).open("ab") as file:
        file.write(line + b"\n" + metrics(1).model_dump_json().encode() + b"\n")
    with pytest.raises(TrackingError, match=rf"^{re.escape(str(tmp_path / KEY / JOURNAL))}: line 3: damaged: "):
        records(journal)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"other"), lambda path: path.unlink()])
def test_an_artifact_that_is_not_what_was_written_is_refused(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    journal = create(tmp_path, {"record/a": b"content"})
    (artifact,) = (record for record in records(journal) if isinstance(record, Artifact))
    spoil(journal.artifact(artifact))
    with pytest.raises((TrackingError, FileNotFoundError)):
        journal.artifact(artifact)
