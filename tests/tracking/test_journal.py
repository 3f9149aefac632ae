"""The journal of a run: what it keeps, what a kill leaves of it, and what it refuses without running anything."""

import json
import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers_tracking import execute
from workspace import ROOT

from truefit.core.errors import DamagedError, TrackingError
from truefit.tracking import journal as module
from truefit.tracking import journal_file
from truefit.tracking.journal import Journal, pending
from truefit.tracking.records import Artifact, Header, Metrics, Record, Sent, Status, Values

KEY = "0123456789abcdef" * 2
NAME = f"{KEY}.sqlite"
TAGS = Values(kind="tags", values={"own": "tag"})


def header(**changes: Any) -> Header:
    content = {"key": KEY, "store": None, "experiment": "e", "name": "n", "start_time": 5, "tags": {}, **changes}
    return Header.model_validate(content)


def create(runs: Path, artifacts: dict[str, bytes] | None = None, **changes: Any) -> Journal:
    return Journal.create(runs, header(**changes), [TAGS], artifacts or {})


def metrics(step: int) -> Metrics:
    return Metrics(step=step, time=1000 + step, values={"loss": 1 / 3 / step, "speed": 1e300})


def records(journal: Journal, after: int = 0) -> list[Any]:
    return [record for record, _ in journal.read(after)]


def content(journal: Journal, wanted: Artifact) -> bytes:
    (number,) = (number for record, number in journal.read() if record == wanted)
    with journal.artifact(wanted, number) as path:
        assert path.name == Path(wanted.name).name
        return path.read_bytes()


def test_records_come_back_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 3)
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
    journal.append_artifact("state_dict/empty.pt", b"")
    journal.close()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    again = Journal(tmp_path / NAME)
    assert again.header == header(tags={"who": "me"}, fingerprint="f" * 64)
    tags, first, *others, last, empty = records(again)
    assert tags == TAGS
    assert others == written
    assert [content(again, one) for one in (first, last, empty)] == [b"content", b"\x00\xff", b""]
    assert again.status == written[-1]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_reading_goes_on_behind_a_number_also_while_it_is_written(tmp_path: Path) -> None:
    journal = create(tmp_path)
    journal.append(metrics(1))
    number = [number for _, number in journal.read()][-1]
    reading = journal.read(number)
    for step in (2, 3):
        journal.append(metrics(step))
        assert next(reading)[0] == metrics(step)


WRITER = f"""
import os, sys; from pathlib import Path; from truefit.tracking import journal as j, records as r
h = r.Header(key="{KEY}", store=None, experiment="e", name="n", start_time=5, tags={{}})
def kill(*_): os.kill(os.getpid(), 9)
"""


def killed(runs: Path, code: str) -> None:
    """Run code that kills itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", WRITER + code, str(runs)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_kill_loses_no_record_and_leaves_none_in_part(tmp_path: Path) -> None:
    code = """
journal = j.Journal.create(Path(sys.argv[1]), h, [], {})
for step in range(1, 4):
    journal.append(r.Metrics(step=step, time=1, values={"loss": 1.0}))
j.PART = 1
insert = j._insert_artifact
j._insert_artifact = lambda database, name, content: (insert(database, name, content), kill())
journal.append_artifact("state_dict/best.pt", b"content")
"""
    killed(tmp_path, code)
    (journal,) = pending(tmp_path)
    assert [record.step for record in records(journal)] == [1, 2, 3]
    journal.hold(seconds=0)
    journal.append(metrics(4))
    journal.close()
    assert [record.step for record in records(journal)] == [1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_run_appears_with_its_whole_origin_or_not_at_all(tmp_path: Path) -> None:
    killed(tmp_path, 'j._insert_artifact = kill; j.Journal.create(Path(sys.argv[1]), h, [], {"record/a": b"x"})')
    assert [path.suffix for path in tmp_path.iterdir()] != []
    assert pending(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


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
    for step in range(1, 100):
        journal.append(metrics(step))
    before = (tmp_path / NAME).stat().st_size  # what is in it, and no longer in the log alone, is on the disk
    assert (tmp_path / f"{NAME}-wal").stat().st_size > before
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    journal.append(metrics(100))
    assert (tmp_path / NAME).stat().st_size > before
    monkeypatch.undo()
    for step in range(101, 300):
        journal.append(metrics(step))
    former = (tmp_path / NAME).stat().st_size
    journal.append(Status(status="RUNNING", time=1, final=False))
    assert (tmp_path / NAME).stat().st_size > former


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        create(tmp_path, {"record/a": b""}).append(metrics(1))
    finally:
        os.umask(former)
    for name in (NAME, f"{NAME}-wal"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


# --- how far it was sent


def test_what_was_sent_is_kept(tmp_path: Path) -> None:
    journal = create(tmp_path)
    with journal.sending() as sent:
        assert sent == Sent()
        journal.acknowledge(Sent(run_id="r", number=1, skipped=["dataset"]))
    assert Journal(journal.path).sent() == Sent(run_id="r", number=1, skipped=["dataset"])


def test_one_process_sends_a_journal_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "BUSY_SECONDS", 0.2)
    journal = create(tmp_path)
    with journal.sending(), pytest.raises(TrackingError, match=r"being sent by another process$"), journal.sending():
        pass
    with journal.sending():
        journal.remove()
    journal.close()
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
            journal.close()
        assert isinstance(waiting.exception(), FileNotFoundError)
    assert list(tmp_path.iterdir()) == []


# --- who writes it


def test_one_process_writes_a_journal_and_what_a_dead_one_held_is_free(tmp_path: Path) -> None:
    journal = create(tmp_path)
    with pytest.raises(TrackingError, match=r"being written by another process$"):
        Journal(journal.path).hold(seconds=0)
    journal.close()
    killed(tmp_path, "next(iter(j.pending(Path(sys.argv[1])))).hold(); kill()")
    Journal(journal.path).hold(seconds=0)


def test_what_killed_processes_left_of_journals_that_are_gone_is_removed(tmp_path: Path) -> None:
    other = "f" * 32
    for name in (f"{other}.sqlite-wal", f"{other}.sqlite-shm", f".{other}.written", f".{other}.sent", f".{other}.sqlite.tmp"):
        (tmp_path / name).touch()
    (tmp_path / f".{other}.artifact").mkdir()
    (tmp_path / f".{other}.artifact/a").touch()
    (tmp_path / "README").touch()  # which is none of ours
    journal = create(tmp_path)
    journal.append(metrics(1))
    before = {path.name for path in tmp_path.iterdir() if KEY in path.name} | {"README"}
    assert [one.header.key for one in pending(tmp_path)] == [KEY]
    assert {path.name for path in tmp_path.iterdir()} == before


# --- what is refused


def refused(runs: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that the journal of KEY is set aside, with the fault, and that the one beside it is found."""
    other = "f" * 32
    create(runs, key=other).close()
    assert [journal.header.key for journal in pending(runs)] == [other]
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        f"warning: {re.escape(str(runs))}/{KEY}(\\.sqlite)?: {fault}.*; it is set aside as {KEY}.damaged", line
    )
    assert (runs / f"{KEY}.damaged").exists()
    assert [journal.header.key for journal in pending(runs)] == [other]
    assert capsys.readouterr().err == ""


class Malicious:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.place),))


def test_a_pickle_planted_as_a_journal_is_set_aside_without_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 10."""
    (tmp_path / NAME).write_bytes(pickle.dumps(Malicious(tmp_path / "planted")))
    refused(tmp_path, "damaged: ", capsys)
    assert not (tmp_path / "planted").exists()


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) AS header, '' AS sent FROM n"


@pytest.mark.parametrize(
    ("statements", "fault"),
    [
        (["PRAGMA user_version = 3"], "damaged: found the format 3, allowed: 2"),
        (["DROP TABLE run", f"CREATE VIEW run AS {ENDLESS}"], "damaged: its tables are not those of a journal"),
        (
            ["CREATE TRIGGER t AFTER UPDATE ON run BEGIN DELETE FROM record; END"],
            "damaged: its tables are not those of a journal",
        ),
        (["DELETE FROM run"], "damaged: found 0 headers, allowed: 1"),
        (["UPDATE run SET header = X'ff'"], "damaged: header: "),
        (["UPDATE run SET header = CAST(X'ff' AS TEXT)"], "damaged: "),
        (["UPDATE run SET header = 5"], "damaged: header: "),
    ],
)
def test_a_database_that_is_no_journal_of_this_format_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statements: list[str], fault: str
) -> None:
    """Fault 10."""
    create(tmp_path).close()
    execute(tmp_path / NAME, *statements)
    refused(tmp_path, re.escape(fault), capsys)


def test_a_journal_of_json_lines_is_set_aside_with_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault 10."""
    (tmp_path / KEY / "artifacts").mkdir(parents=True)
    (tmp_path / KEY / "journal.jsonl").write_text('{"format":1}\n')
    refused(tmp_path, "the journal of an earlier truefit, which alone can send it", capsys)
    assert (tmp_path / f"{KEY}.damaged/journal.jsonl").exists()


def test_a_journal_of_a_later_format_that_is_being_written_stays(tmp_path: Path) -> None:
    journal = create(tmp_path)
    execute(journal.path, "PRAGMA user_version = 3")
    assert pending(tmp_path) == []
    assert journal.path.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "../../../etc"},
        {"key": KEY.upper()},
        {"completes": "' or 1=1; drop table runs; --"},
        {"training": "' or 1=1; --"},
        {"fingerprint": "f" * 63 + "'"},
        {"name": "n" * 251},
        {"start_time": "5"},
        {"start_time": 2**63},
        {"tags": {"a": 1}},
        {"command": "rm"},
    ],
)
def test_a_header_that_is_not_one_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    create(tmp_path).close()
    planted = json.dumps(header().model_dump() | changes).replace("'", "''")
    execute(tmp_path / NAME, f"UPDATE run SET header = '{planted}'")
    with pytest.raises(DamagedError, match=": damaged: header: "):
        Journal(tmp_path / NAME)


def test_a_header_in_another_runs_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create(tmp_path, key="1" * 32).close()
    (tmp_path / f"{'1' * 32}.sqlite").rename(tmp_path / NAME)
    refused(tmp_path, f"damaged: header: found the key {'1' * 32}, allowed: the file's name", capsys)


METRICS = {"kind": "metrics", "step": 1, "time": 1, "values": {"loss": 1.0}}
ARTIFACT = {"kind": "artifact", "name": "record/a", "sha256": "0" * 64}


@pytest.mark.parametrize(
    "text",
    [
        "\x80\x04\x95",
        "[]",
        json.dumps(METRICS | {"kind": "exec"}),
        json.dumps(METRICS | {"values": {"loss": float("nan")}}),
        json.dumps(METRICS | {"values": {"loss": "1"}}),
        json.dumps(METRICS | {"step": -1}),
        json.dumps(METRICS | {"more": 1}),
        *(json.dumps(ARTIFACT | {"name": name}) for name in ("../a/b", "/etc/passwd", "a", "a/../../b", "a//b", "a/\n")),
        json.dumps(ARTIFACT | {"sha256": "../" * 21 + "x"}),
        json.dumps({"kind": "dataset", "values": {"name": "x"}}),
        json.dumps({"kind": "status", "status": "DELETED", "time": 1, "final": True}),
    ],
)
def test_a_row_that_is_no_record_is_refused_by_its_number(tmp_path: Path, text: str) -> None:
    journal = create(tmp_path)
    with closing(sqlite3.connect(journal.path)) as database, database:
        database.execute("INSERT INTO record (json) VALUES (?)", (text,))
    journal.append(metrics(1))
    with pytest.raises(DamagedError, match=rf"^{re.escape(str(journal.path))}: damaged: record 2: "):
        records(journal)


def test_a_record_larger_than_any_that_is_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = create(tmp_path)
    monkeypatch.setattr(journal_file, "LARGEST", 10_000)
    execute(journal.path, "INSERT INTO record (json) VALUES (printf('%.20000c', 'x'))")
    with pytest.raises(DamagedError, match="string or blob too big"):
        records(journal)


@pytest.mark.parametrize("spoil", ["UPDATE part SET bytes = X'00'", "DELETE FROM part", "UPDATE part SET bytes = 7"])
def test_an_artifact_that_is_not_what_was_written_is_refused(tmp_path: Path, spoil: str) -> None:
    journal = create(tmp_path, {"record/a": b"content"})
    (artifact,) = (record for record in records(journal) if isinstance(record, Artifact))
    execute(journal.path, spoil)
    with pytest.raises(DamagedError, match="record 2: the digest of record/a is not that of its bytes"):
        content(journal, artifact)
    assert not list(tmp_path.glob(".*.artifact"))
