"""What a run records of files that are not committed: a patch, what is left out of it, and that recording leaves no trace."""

import os
import subprocess
from pathlib import Path

import pytest

from truefit.core.errors import TruefitError
from truefit.tracking.workspace import LeftOut, Workspace, read_workspace, summary

LIMIT = 1000
TOKEN = "ghp_" + "a1B2" * 9  # in two parts, so that this file itself does not look as if it had one


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def commit_all() -> None:
    git("add", "--all", "--force")
    git("commit", "--quiet", "--message", "more")


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def recorded_names(workspace: Workspace, folder: str = ".") -> list[str]:
    """Return the names of the files in the patch."""
    listed = subprocess.run(["git", "-C", folder, "apply", "--numstat", "-z", "-"], input=workspace.patch, capture_output=True)
    return [os.fsdecode(entry.split(b"\t")[2]) for entry in listed.stdout.split(b"\0")[:-1]]


def left_out(workspace: Workspace, needed: bool | None = None) -> dict[str, str]:
    return {file.name: file.reason for file in workspace.left_out if needed in (None, file.needed)}


def apply_in_clone(workspace: Workspace, *settings: str) -> Path:
    """Clone the repository of the current folder, apply the patch there, and return the clone's folder."""
    clone = Path.cwd().parent / "clone"
    git("clone", "--quiet", *settings, ".", str(clone))
    patch = clone.with_suffix(".patch")
    patch.write_bytes(workspace.patch)
    git("-C", str(clone), "apply", "--whitespace=nowarn", str(patch))
    return clone


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which the test runs."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.chdir(root)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "t")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "t@example.org")
    git("init", "--quiet")
    Path("code.py").write_text("a = 1\n")
    Path(".gitignore").write_text("ignored\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "one")
    return root


def test_clean_workspace_has_its_commit_and_no_patch(repository: Path) -> None:
    workspace = read_workspace(LIMIT)
    assert workspace.commit == git("rev-parse", "HEAD").strip()
    assert (workspace.dirty, workspace.patch) == (False, b"")


def test_change_in_the_second_of_the_commit_is_recorded(repository: Path) -> None:
    git("config", "core.trustctime", "false")  # or the second's end would tell
    second = Path(".git/index").stat().st_mtime_ns // 10**9 * 10**9 - 60 * 10**9
    os.utime("code.py", ns=(second, second))
    git("add", "--renormalize", "code.py")
    git("update-index", "--refresh")
    os.utime(".git/index", ns=(second, second))
    Path("code.py").write_text("a = 2\n")
    os.utime("code.py", ns=(second, second))
    assert b"+a = 2" in read_workspace(LIMIT).patch


def test_patch_is_the_same_whatever_the_users_settings_of_git_say(repository: Path, tmp_path: Path) -> None:
    Path("code.py").write_text("a = 2\n")
    Path(".gitattributes").write_text("*.py diff=shout\n")
    plain = read_workspace(LIMIT)
    for name, value in [
        *(("diff.noprefix", "true"), ("diff.mnemonicPrefix", "true"), ("diff.relative", "true"), ("color.ui", "always")),
        *(("diff.shout.textconv", "tr a-z A-Z <"), ("diff.external", "false")),
    ]:
        git("config", name, value)
    assert read_workspace(LIMIT) == plain


def test_reading_leaves_index_and_working_tree_as_they_were(repository: Path) -> None:
    Path("new.py").write_text("b = 1\n")
    before = (git("status", "--porcelain"), Path(".git/index").read_bytes())
    read_workspace(LIMIT)
    assert (git("status", "--porcelain"), Path(".git/index").read_bytes()) == before


def test_folder_without_a_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(TruefitError) as caught:
        read_workspace(LIMIT)
    assert str(caught.value) == (
        "git rev-parse: fatal: not a git repository (or any of the parent directories): .git; "
        "every run records its commit: `git init` and commit"
    )


def test_repository_without_a_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    with pytest.raises(TruefitError, match=r"^git rev-parse: fatal: Needed a single revision; every run records"):
        read_workspace(LIMIT)


def test_missing_git_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    with pytest.raises(TruefitError, match=r"^git: not found; every run records the commit that it ran on$"):
        read_workspace(LIMIT)


def test_patch_brings_a_clean_checkout_to_the_same_files(repository: Path) -> None:
    write("gone.py", "a = 1\n")
    write("a.bin", bytes(256))
    write("link.py", "a = 1\n")
    commit_all()
    Path("gone.py").unlink()
    Path("link.py").unlink()
    Path("link.py").symlink_to("code.py")  # which a patch has in two parts
    write("code.py", "a = 2\n")
    write("a.bin", bytes(range(256)))
    write("b.py", "")
    write("staged.py", "b = 1\n")
    git("add", "staged.py")
    write("src/größe ü.py", "c = 1")
    write('src/a"b\\.py', "c = 1\n")
    write("ignored", "not recorded\n")
    workspace = read_workspace(LIMIT)
    assert (workspace.dirty, workspace.left_out) == (True, ())
    clone = apply_in_clone(workspace)
    names = {
        name
        for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        if Path(name).is_file()
    }
    assert names == {
        path.relative_to(clone).as_posix() for path in clone.rglob("*") if path.is_file() and ".git" not in path.parts
    }
    assert all((clone / name).read_bytes() == Path(name).read_bytes() for name in names)
    assert (clone / "link.py").is_symlink()


def test_file_that_left_the_index_alone_is_recorded_as_it_is(repository: Path) -> None:
    git("rm", "--quiet", "--cached", "code.py")
    assert (read_workspace(LIMIT).dirty, read_workspace(LIMIT).patch) == (True, b"")
    write("code.py", "a = 2\n")
    assert b"+a = 2" in read_workspace(LIMIT).patch


# What must never be in a record: places where secrets are kept, and texts that hold one; fault 14, and done-when 6.
PLACES = [
    *(".env", ".env.local", "b/.env/prod", ".envs/production", "prod.env", ".envrc", ".netrc", ".pypirc", ".pgpass", ".npmrc"),
    *(".git-credentials", ".htpasswd", ".s3cfg", ".aws/credentials", ".ssh/known.py", ".kube/config", ".docker/config.json"),
    *("id_rsa", "keys/id_ed25519", "server.pem", "api.key", "store.p12", "credentials.json", "conf/client_secret_1.json"),
    *("service-account.json", "secrets.yaml", ".streamlit/secrets.toml", "conf/secrets/db.yml", "passwords.ini", "x.tfvars"),
    *("basic_auth.ini", "conf/token.cfg", ".dvc/config.local"),
]
CONTENTS: dict[str, str | bytes] = {
    "aws.py": "KEY = 'AKIA" + "ABCDEFGHIJKLMNOP'",
    "push.sh": f"git push https://{TOKEN}@github.com/a/b",
    "pat.py": "x = 'github_pat_" + "11AAAAAAA0abcdefghijklmn'",
    "ci.yml": "variables: {A: glpat-" + "abcdefghij0123456789}",
    "notify.py": "send('xoxb-" + "123456789012-abcdefghijkl')",
    "hook.toml": "url = 'https://hooks.slack.com/services/" + "T000/B000/abc'",
    "pem.py": '"""-----BEGIN RSA PRIVATE' + ' KEY-----"""',
    "jwt.yaml": "header: eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.abc",
    "google.py": "maps('AIza" + "SyA0123456789abcdefghijklmnopqrstuv')",
    "pay.py": "stripe.api = 'sk_live_" + "0123456789abcdefABCDEFGH'",
    "model.py": "client('sk-ant-api03-" + "0123456789abcdefghijklmnopqrstuv')",
    "hub.py": "login('hf_" + "abcdefghijklmnopqrstuvwxyzABCDEF')",
    "mail.py": "send('SG." + "a" * 22 + "." + "b" * 43 + "')",
    "azure.ini": "connection = AccountKey=" + "Ab1/" * 21 + "Ab==",
    "url.cfg": "uri = postgresql://me:" + "hunter2@db.example.org/mlflow",
    "query.py": "get('https://example.org/?a=1&token=" + "0a1b2c3d4e5f')",
    "wandb.py": "wandb.login(key='" + "0123456789abcdef" * 2 + "01234567')",
    "aws.cfg": "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKE",
    "header.py": "headers = {'Authorization': 'Basic " + "bWU6aHVudGVyMg=='}",
    "plain.yaml": "db:\n  password: " + "hunter2",
    "quoted.py": "connect(user='me', password='" + "hunter2')",
    "typed.py": "PASSWORD: str = '" + "hunter2'",
    "dict.py": "{'api_key': '" + "0a1b2c3d4e5f6071'}",
    "export.sh": "export DB_PASSWORD=" + "hunter2",
    "machine.cfg": "machine example.org login me " + "password hunter2",
    "wide.yaml": ("password: " + "hunter2").encode("utf-16"),
}


@pytest.mark.parametrize("known", [False, True])
def test_what_may_be_a_secret_is_never_recorded(repository: Path, known: bool) -> None:
    files: dict[str, str | bytes] = {**dict.fromkeys(PLACES, "neutral\n"), **CONTENTS}
    assert len(files) >= 40
    if known:
        for name in files:
            write(name, "before\n")
        write("rows.csv", "x,y\n")
        commit_all()
    for name, content in files.items():
        write(name, content)
    write("src/fine.py", "password = ask()\nMAX_TOKENS = 4096\ntoken_file = '/run/secrets/token'\n")
    workspace = read_workspace(100_000)
    assert recorded_names(workspace) == ["src/fine.py"]
    assert set(left_out(workspace)) == set(files)
    assert left_out(workspace)["push.sh"] == "a GitHub token may be in it"
    # What git knows and has changed, a rerun needs; so it does code that holds a secret, and no file where secrets are kept.
    expected = set(CONTENTS) | (set(PLACES) - {".dvc/config.local"} if known else set())
    assert (workspace.dirty, set(left_out(workspace, needed=True))) == (True, expected)


def test_secret_that_a_change_removes_or_stands_beside_is_not_recorded(repository: Path) -> None:
    for name in ("removed.py", "beside.py", "packed.bin"):
        write(name, f"a = 1\nkey = '{TOKEN}'\n" if name != "packed.bin" else b"\0" + TOKEN.encode())
    write("far.py", f"key = '{TOKEN}'\n" + "a = 1\n" * 9)
    commit_all()
    write("removed.py", "a = 1\n")
    write("beside.py", f"a = 2\nkey = '{TOKEN}'\n")
    write("packed.bin", b"\0\1")
    write("far.py", Path("far.py").read_text() + "b = 1\n")
    workspace = read_workspace(LIMIT)
    assert set(left_out(workspace, needed=True)) == {"removed.py", "beside.py", "packed.bin"}
    assert recorded_names(workspace) == ["far.py"]


def test_only_code_and_configuration_is_recorded_of_what_git_does_not_know(repository: Path) -> None:
    """Fault 14: a CSV of rows outside data/ was in the record."""
    rows = "x,y\n1,2\n"
    others = {
        *(
            "rows.csv",
            "src/rows.csv",
            "data/own.csv",
            "data/own.py",
            "notes.md",
            "a.ipynb",
            "dump.json",
            "weights.bin",
            "a.txt",
        ),
        *(".hidden/a.py", "venv/pyvenv.cfg", "venv/lib/a.py", "node_modules/a.py", "src/a.egg-info/a.toml"),
    }
    ours = {
        *(
            "src/a.py",
            "scripts/run.sh",
            "pyproject.toml",
            "Makefile",
            "requirements-dev.txt",
            "conf/a.yaml",
            "uv.lock",
            "a.ini",
        ),
        *("data/own.csv.dvc", "data/.gitignore", ".dvcignore", "src/data/a.py", "setup.cfg"),
    }
    for name in others | ours:
        write(name, rows)
    workspace = read_workspace(LIMIT)
    assert set(recorded_names(workspace)) == ours
    assert left_out(workspace) == dict.fromkeys(others, "neither code nor configuration")
    assert set(left_out(workspace, needed=True)) == {"src/rows.csv"}


def test_files_that_a_rerun_does_not_need_leave_the_run_clean(repository: Path) -> None:
    write("rows.csv", "x,y\n1,2\n")
    write(".env", "neutral\n")
    workspace = read_workspace(LIMIT)
    assert (workspace.dirty, workspace.patch) == (False, b"")
    assert summary(workspace.left_out) == ".env (secrets may be in it); rows.csv (neither code nor configuration)"
    write("src/rows.csv", "x,y\n1,2\n")
    assert read_workspace(LIMIT).dirty


def test_changed_settings_of_dvc_are_named_and_not_needed(repository: Path) -> None:
    write(".dvc/config", "")
    commit_all()
    write(".dvc/config", "['remote \"r\"']\n    url = https://example.org\n")
    workspace = read_workspace(LIMIT)
    assert (workspace.dirty, workspace.patch) == (True, b"")
    assert workspace.left_out == (LeftOut(".dvc/config", "secrets may be in it", needed=False),)


def test_files_too_large_alone_or_together_are_named_and_not_stored(repository: Path) -> None:
    """Fault 14: six files of 9.9 MB each made a patch of 76 MB."""
    large = "a = 1 \n" * 143
    for name in ("shrunk.py", "deleted.py"):
        write(name, large)
    commit_all()
    write("shrunk.py", "")
    Path("deleted.py").unlink()
    write("new with a space.py", large)
    for number in range(6):
        write(f"part{number}.py", "b = 1\n" * 66)
    workspace = read_workspace(LIMIT)
    assert recorded_names(workspace) == ["part0.py", "part1.py"]
    assert len(workspace.patch) < 2 * LIMIT
    assert set(left_out(workspace, needed=True)) == set(left_out(workspace))
    assert summary(workspace.left_out) == (
        "part2.py, part3.py, part4.py, part5.py (together larger than track.largest_file_mb); "
        "deleted.py, new with a space.py, shrunk.py (larger than track.largest_file_mb)"
    )


def test_files_of_other_projects_in_the_repository_are_not_looked_at(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 14: in a repository of many projects everybody's files were recorded."""
    for project in ("größe secrets", "other"):
        write(f"{project}/params.yaml", "a: 1\n")
    commit_all()
    write("code.py", "a = 2\n")
    write("other/params.yaml", "a: 2\n")
    write("other/new.py", "b = 1\n")
    monkeypatch.chdir("größe secrets")
    clean = read_workspace(LIMIT)
    assert (clean.dirty, clean.patch, clean.left_out) == (False, b"", ())
    write("params.yaml", "a: 2\n")
    write("src/new.py", "b = 1\n")
    write("data/own.csv", "x,y\n1,2\n")
    workspace = read_workspace(LIMIT)
    assert recorded_names(workspace, "..") == ["größe secrets/params.yaml", "größe secrets/src/new.py"]
    assert left_out(workspace) == {"größe secrets/data/own.csv": "neither code nor configuration"}


def test_name_that_is_no_utf_8_is_recorded_and_can_be_shown(repository: Path) -> None:
    Path(os.fsdecode(b"src\xff.py")).write_bytes(b"a = 1\n")
    Path(os.fsdecode(b"rows\xff\n.csv")).write_bytes(b"1\n")
    workspace = read_workspace(LIMIT)
    assert b'"a/src\\377.py"' in workspace.patch
    assert summary(workspace.left_out) == r"rows\udcff\n.csv (neither code nor configuration)"


def test_line_ends_that_git_converts_come_back(repository: Path) -> None:
    git("config", "core.autocrlf", "true")
    write("code.py", "a = 1\r\nb = 1\r\n")
    commit_all()
    git("config", "core.safecrlf", "true")
    assert not read_workspace(LIMIT).dirty
    write("code.py", "a = 2\r\nb = 1\r\n")
    write("new.py", "a = 1\n")
    workspace = read_workspace(LIMIT)
    clone = apply_in_clone(workspace, "--config", "core.autocrlf=true")
    assert (clone / "code.py").read_bytes() == Path("code.py").read_bytes()
    assert (clone / "new.py").read_text() == "a = 1\n"


def test_new_file_beside_what_a_sparse_checkout_has_is_recorded(repository: Path) -> None:
    """Fault 17: git refused it, and no training began."""
    for folder in ("src", "docs"):
        write(f"{folder}/a.py", "a = 1\n")
    commit_all()
    git("sparse-checkout", "set", "src")
    assert not Path("docs").exists()
    write("docs/new.py", "a = 1\n")
    write("src/a.py", "a = 2\n")
    workspace = read_workspace(LIMIT)
    assert (recorded_names(workspace), workspace.left_out) == (["docs/new.py", "src/a.py"], ())


def test_submodules_are_recorded_by_their_commits_and_named_where_they_have_changes(repository: Path, tmp_path: Path) -> None:
    """Fault 17."""
    git("init", "--quiet", str(tmp_path / "library"))
    commit = ("-c", "protocol.file.allow=always")
    library = ("-C", str(tmp_path / "library"))
    for number in (1, 2):
        (tmp_path / "library/a.py").write_text(f"a = {number}\n")
        git(*library, "add", "--all")
        git(*library, "commit", "--quiet", "--message", "one")
    second = git(*library, "rev-parse", "HEAD").strip()
    git(*commit, "submodule", "--quiet", "add", str(tmp_path / "library"), "libs/größe")
    commit_all()
    assert read_workspace(LIMIT) == Workspace(git("rev-parse", "HEAD").strip(), False, b"", (), {"libs/größe": second})
    git("-C", "libs/größe", "checkout", "--quiet", "HEAD~")
    moved = read_workspace(LIMIT)
    first = git(*library, "rev-parse", "HEAD~").strip()
    assert (moved.dirty, moved.patch, moved.left_out, moved.submodules) == (True, b"", (), {"libs/größe": first})
    write("libs/größe/b.py", "")
    reason = "a submodule with changes of its own"
    assert read_workspace(LIMIT).left_out == (LeftOut("libs/größe", reason, needed=False),)
    write("libs/größe/a.py", "a = 3\n")
    assert read_workspace(LIMIT).left_out == (LeftOut("libs/größe", reason, needed=True),)
    git("submodule", "--quiet", "deinit", "--force", "libs/größe")
    assert read_workspace(LIMIT).submodules == {}


def test_a_repository_inside_the_repository_is_named_and_not_stored(repository: Path) -> None:
    git("init", "--quiet", "sub")
    write("sub/file.py", "content\n")
    assert read_workspace(LIMIT).left_out == (LeftOut("sub/", "a repository of its own", needed=False),)


def test_file_in_conflict_is_recorded_as_it_is(repository: Path) -> None:
    git("checkout", "--quiet", "-b", "other")
    write("code.py", "a = 2\n")
    git("commit", "--quiet", "--all", "--message", "two")
    git("checkout", "--quiet", "-")
    write("code.py", "a = 3\n")
    git("commit", "--quiet", "--all", "--message", "three")
    subprocess.run(["git", "merge", "other"], check=False, capture_output=True)
    workspace = read_workspace(LIMIT)
    assert workspace.dirty
    assert b"+<<<<<<< HEAD" in workspace.patch


def test_summary_of_many_files_fits_a_tag() -> None:
    files = [LeftOut(f"{'n' * 100}{number}.csv", "too large", needed=False) for number in range(200)]
    assert summary(files[:150]).endswith(" and 50 more (too large)") or len(summary(files[:150])) == 5000
    assert summary(LeftOut(f"{n}.csv", "too large", needed=False) for n in range(150)).endswith(" and 50 more (too large)")
    assert len(summary(files)) == 5000
