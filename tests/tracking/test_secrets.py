"""What looks like a secret, and what does not."""

import subprocess
from time import process_time

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
        "password = 'Enter the one of the database'",
        "password_hint: 'correct horse battery staple'",
        'PASSWORD="$(cat /run/secrets/db)"',
        'DB_PASS="$DB_PASS"',
        "db_pass: ${DB_PASS}",
        "bypass: on4ever2",
        "passes: hunter2xyz",
        "compass = 'hunter2xyz'",
        "passed='hunter2xyz'",
        "pwm: hunter2xyz",
        "first_pass: forward",
        "tokenizer: gpt2-medium",
        "password=$(cat /run/secrets/db)",
        "pass: 1.25e-05",
        "if done:\n    pass\nname = 'hunter2xyz'",
        "else: pass\nx: hunter2xyz",
        "password: |\n  {{ vault.password }}",
        "password = (\n    ask('hunter2xyz'))",
        "url = '?password=' + quote + '&user='",
        "auth=('bob', password)",
        "auth=('bob', '<password>')",
        "curl -u bob:$PASS https://example.org",
        "curl -u 'bob:<password>' https://example.org",
        "curl -O https://example.org/a\ndocker run -u bob:users1000 image",
    ],
)
def test_what_names_a_secret_without_holding_one_is_no_secret(text: str) -> None:
    assert find_secret("a.yaml", text.encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        "connect(host=host, user=user, password=hunter2xyz)",
        "if a == b: password = hunter2xyz",
        'f"host={host} password={password}"',
        'print("passwords: several")',
        'search("token=([a-z0-9]+)", text)',
        "Pass :data:`h11.CLIENT` to it",
        "{'TokenLexer': ('lexers.special2', 'Token')}",
        "{'OAuth': ('get_urls', 'encode_urls')}",
        "def first():\n    pass\n\n\nx = 'hunter2xyz'",
        'class Password:\n    """Hashed credentials, 2nd form."""',
    ],
)
def test_code_that_names_a_secret_without_holding_one_is_no_secret(text: str) -> None:
    assert find_secret("a.py", text.encode()) is None


# Each as a file has it, and as a patch does.
@pytest.mark.parametrize("begin", ["", "+"])
@pytest.mark.parametrize(
    ("path", "text"),
    [
        *((path, "DB_PASS = '" + "hunter2xyz'") for path in ("a.py", "a.sh", "a.yaml")),
        *((path, "DB_PASS=" + "hunter2xyz") for path in ("a.sh", "a.yaml")),
        ("a.py", 'smtp_pass = "' + 'hunter2xyz"'),
        ("a.ini", "smtp_pass = " + "hunter2xyz"),
        ("a.py", "db_pw='" + "hunter2'"),
        ("a.yaml", "db_pw: " + "hunter2xyz"),
        ("a.yaml", "pass: " + "hunter2xyz"),
        ("a.py", "{'pass': '" + "hunter2xyz'}"),
        ("a.yaml", "passcode: " + "open-sesame"),
        ("a.py", "passcode = '" + "open-sesame'"),
        ("a.py", 'connect("host=h user=u password=' + 'hunter2xyz")'),
        ("a.py", 'connect("password=' + 'hunter2xyz host=h")'),
        ("a.py", 'connect("Server=h;Uid=u;Pwd=' + 'hunter2xyz;")'),
        ("a.py", 'run("db", "--password=' + 'hunter2xyz")'),
        ("a.py", 'password = "' + 'correct horse battery staple"'),
        ("a.yaml", 'passphrase: "' + 'correct horse battery staple"'),
        ("a.yaml", "password: |\n  " + "hunter2xyz"),
        ("a.yaml", "db:\n  password: >-\n    " + "hunter2xyz"),
        ("a.py", 'PASSWORD = (\n    "' + 'hunter2xyz"\n)'),
        ("a.py", 'PASSWORD = ("' + 'hunter2xyz")'),
        ("a.py", 'PASSWORD = \\\n    "' + 'hunter2xyz"'),
        ("a.py", 'password = """' + 'hunter2xyz"""'),
        ("a.py", "password = '''\\\n" + "hunter2xyz\n'''"),
        ("a.py", 'get(url, auth=("bob","' + 'hunter2xyz"))'),
        ("a.py", "AUTH = ('bob', '" + "hunter2xyz')"),
        ("a.sh", "curl -u bob:" + "hunter2xyz https://example.org"),
        ("a.sh", "curl --silent \\\n  --user 'bob:" + "hunter2xyz' https://example.org"),
        ("a.py", "run('curl', '-u', 'bob:" + "hunter2xyz')"),
    ],
)
def test_password_is_found_however_it_is_given(path: str, text: str, begin: str) -> None:
    assert find_secret(path, "\n".join(begin + line for line in text.split("\n")).encode()) == "a password or key"


@pytest.mark.parametrize(
    "text",
    ["pwd = '", "pwd='a" + " " * 500, "auth=('a','", "curl -u a", " -u a:", "pass=", "password: |\n", "a=b;pwd=", 'pwd="""'],
)
def test_search_takes_time_in_proportion_to_the_text(text: str) -> None:
    start = process_time()
    find_secret("a.py", text.encode() * (1_000_000 // len(text)))
    assert process_time() - start < 5


@pytest.mark.parametrize(
    "text", ["//me:" + "pa/ss@host", "postgresql+psycopg://:" + "hunter2@host/db", "s3://KEY:" + "a+b/c@host"]
)
def test_address_with_a_password_is_found(text: str) -> None:
    assert find_secret("a.md", f"https:{text}".encode()) == "an address with a password"
