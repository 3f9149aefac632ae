"""What looks like a secret, and what does not."""

import subprocess

import pytest
from workspace import ROOT

from truefit.tracking.secrets import find_secret, may_hold_secrets


def test_no_code_or_setting_of_this_repository_looks_like_a_secret() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # Tests and documents may have addresses with a password, to see, and to say, that it is not shown.
    names = [name for name in listed.split("\0")[:-1] if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/"))]
    assert {name: what for name in names if (what := find_secret(name, (ROOT / name).read_bytes()))} == {}
    assert [name for name in names if may_hold_secrets(name)] == [".dvc/config"]


@pytest.mark.parametrize(
    "text",
    [
        "password = input()",
        "password: str",
        "def connect(password: str = '', token: str = 'rerun.key') -> None:",
        "token: ${TOKEN}",
        "password: {{ vault.password }}",
        "url: postgresql://me:${PASSWORD}@host/db",
        "url: https://<user>:<password>@host",
        "url: http://127.0.0.1:5000/#/experiments/me@example.org",
        "ssh://git@example.org:22/a.git",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "tokens: 4096",
        "tokenizers==0.22.1",
        "secret_file: /run/secrets/truefit2",
        "pwdlib==0.2.1a1",
        "'password': 'The password of the user'",
    ],
)
def test_what_names_a_secret_without_holding_one_is_no_secret(text: str) -> None:
    assert find_secret("a.yaml", text.encode()) is None


@pytest.mark.parametrize(
    "text", ["//me:" + "pa/ss@host", "postgresql+psycopg://:" + "hunter2@host/db", "s3://KEY:" + "a+b/c@host"]
)
def test_address_with_a_password_is_found(text: str) -> None:
    assert find_secret("a.md", f"https:{text}".encode()) == "an address with a password"
