"""The services of docs/team.md on free ports of 127.0.0.1, started by the page's own commands, and the people who use them."""

import importlib.util
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from helpers_required import unavailable
from helpers_server import Service, answers_http, answers_tcp, free_port
from helpers_torture import TORTURE
from mlflow import MlflowClient
from workspace import ROOT, Workspace

PACKAGES = ("boto3", "dvc_s3", "dvc_ssh", "flask_wtf", "psycopg")
RCLONE = Path(sys.executable).parent / "rclone"  # Debian's has no `serve s3`
SSHD = Path("/usr/sbin/sshd")
# In docs/team.md, but for Bob's.
SECRETS = "DATABASE_PASSWORD", "ADMIN_PASSWORD", "ALICE_PASSWORD", "BOB_PASSWORD", "S3_SECRET", "RANDOM_TEXT"


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, the latest of Debian's, which are not in PATH."""
    found = shutil.which("initdb")
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return Path(found).resolve().parent if found else max(folders, key=lambda path: int(path.parent.name), default=None)


def require_services() -> None:
    """Skip the test where something is not installed, or let it fail where TRUEFIT_SERVICES is `required`, as in .ci/run."""
    missing = [
        *(["postgresql: apt-get install postgresql"] if postgres_programs() is None else []),
        *(["sshd: apt-get install openssh-server"] if not SSHD.exists() else []),
        *(["the packages of truefit[team], and rclone: make services"] if not RCLONE.exists() or _lacks_packages() else []),
    ]
    if missing:
        unavailable("SERVICES", "not installed: " + "; ".join(missing))


def _lacks_packages() -> bool:
    return any(importlib.util.find_spec(name) is None for name in PACKAGES)


class Page:
    """docs/team.md, with addresses, secrets and names of its own in the place of those that it shows."""

    def __init__(self, replaced: Mapping[str, str]) -> None:
        self._replaced = dict(replaced)

    def blocks(self, title: str, **replaced: str) -> list[str]:
        """Return the blocks of code below a heading, in their order."""
        text = (ROOT / "docs/team.md").read_text()
        section = re.split(r"^## ", text, flags=re.MULTILINE)
        (chosen,) = (part for part in section if part.startswith(f"{title}\n"))
        blocks = re.findall(r"^ *```\w+\n(.*?)^ *```", chosen, re.MULTILINE | re.DOTALL)
        everything = self._replaced | replaced
        return [re.sub("|".join(map(re.escape, everything)), lambda found: everything[found[0]], block) for block in blocks]


class Person(Workspace):
    """Somebody with a home and a clone of their own, who follows the page; `printed` is all that their commands wrote."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        super().__init__(home, copy=False)
        self.printed = ""
        # What the programs keep of earlier runs, such as a list of fonts, takes seconds to make anew.
        cache = os.environ.get("XDG_CACHE_HOME", str(Path("~/.cache").expanduser()))
        paths = {"HOME": str(home), "XDG_CACHE_HOME": cache, "PYTHONPATH": str(home / "truefit/src")}
        self.environment |= paths | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def run(self, *command: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone and check its exit status."""
        done = super().run(*command, status=status, **variables)
        self.printed += done.stdout + done.stderr
        return done

    def follow(self, block: str, typed: str = "") -> str:
        """Run the lines of a block of the page, with `typed` for those that ask; return what they wrote to stdout."""
        written = ""
        for line in block.splitlines():
            if line.startswith("export "):
                self.environment |= dict(word.split("=", 1) for word in shlex.split(line)[1:])
            elif line not in ("make team", ". .venv/bin/activate"):  # which the tests' own environment stands for
                done = subprocess.run(
                    ["bash", "-c", line],
                    cwd=self.path,
                    env=self.environment,
                    input=typed,
                    capture_output=True,
                    text=True,
                    start_new_session=True,  # without a terminal, so that programs take what is typed from stdin
                )
                assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
                written += done.stdout
                self.printed += done.stdout + done.stderr
            if entered := re.search(r"(?:^|&& )cd (\S+)$", line):
                self.path = (self.path / entered[1]).resolve()
        return written

    def sign_in(self, credentials: str) -> None:
        """Write the file that MLflow's clients read name and password from."""
        path = Path(self.environment["HOME"], ".mlflow/credentials")
        path.parent.mkdir()
        path.write_text(credentials)
        path.chmod(0o600)


class Team:
    """A server that is set up as the page says, with its store, a git repository, and whoever joins."""

    def __init__(self, folder: Path, postgres: Service, port: int, ssh_port: int) -> None:
        self.folder = folder
        self.secrets = {name: f"{name[0]}{uuid4().hex}" for name in SECRETS}
        s3_port, server_port = free_port(), free_port()
        self.uri = f"http://127.0.0.1:{server_port}"
        self.repository = folder / "truefit.git"
        replaced = {
            "db.example.org:5432": f"127.0.0.1:{port}",
            "s3.example.org:9000": f"127.0.0.1:{s3_port}",
            "--addr 127.0.0.1:9000": f"--addr 127.0.0.1:{s3_port}",
            "mlflow.example.org:5000": f"127.0.0.1:{server_port}",
            "--host 0.0.0.0 --port 5000": f"--host 127.0.0.1 --port {server_port}",
            "--workers 2": f"--workers {2 if TORTURE else 1}",  # each takes seconds to start
            "files.example.org/srv": f"127.0.0.1:{ssh_port}{folder}",
            "REPOSITORY": str(self.repository),
            **self.secrets,
        }
        self.page = Page(replaced)
        self._database = f"postgresql://mlflow:{self.secrets['DATABASE_PASSWORD']}@127.0.0.1:{port}/mlflow"
        clone, database, store, settings, environment, start, self._users, remote = self.page.blocks("Set up the server")
        self.admin = Person(folder / "admin")
        self.admin.environment |= {"PGHOST": str(postgres.folder), "PGPORT": str(port), "PGUSER": "postgres"}
        programs = postgres_programs()
        self.admin.environment["PATH"] = f"{programs}:{self.admin.environment['PATH']}"
        self._repository()
        self.admin.follow(clone)
        self.admin.follow(database, typed=f"{self.secrets['DATABASE_PASSWORD']}\n" * 2)
        self.store = self._service(store, "rclone", partial(answers_tcp, s3_port))
        (self.admin.path / "users.ini").write_text(settings)
        (self.admin.path / "server.env").write_text(environment)
        self.server = self._service(start, "mlflow", partial(answers_http, f"{self.uri}/health"))
        self.admin.follow(remote)

    def _repository(self) -> None:
        """Make the repository that everybody clones, with the files of the working tree."""
        origin = Workspace(self.folder / "origin")
        origin.run("git", "clone", "--quiet", "--bare", ".", str(self.repository))
        shutil.rmtree(origin.path)

    def _service(self, block: str, name: str, answers: "partial[bool]") -> Service:
        """Follow a block but for its last line, which is the command of a service."""
        *before, command = block.splitlines()
        self.admin.follow("\n".join(before))
        assert command.startswith(f"{name} ")
        return Service(shlex.split(command), self.admin.path, self.admin.environment, answers)

    def add_users(self) -> None:
        """Let the administrator add Alice and Bob, once the server answers."""
        self.admin.follow(self._users, typed="".join(f"{self.secrets[f'{name}_PASSWORD']}\n" for name in ("ALICE", "BOB")))

    def join(self, name: str) -> Person:
        """Return a user who has joined as the page says."""
        person = Person(self.folder / name)
        clone, credentials, address = self.page.blocks(
            "Join", alice=name, ALICE_PASSWORD=self.secrets[f"{name.upper()}_PASSWORD"]
        )
        person.follow(clone)
        person.sign_in(credentials)
        person.follow(address)
        return person

    @property
    def client(self) -> MlflowClient:
        """A client of the database itself, which needs no name and sees everything."""
        return MlflowClient(self._database)

    def dump(self) -> str:
        """Return all that the database of runs holds, as text."""
        command = ["pg_dump", "--inserts", self._database]
        return subprocess.run(command, env=self.admin.environment, check=True, capture_output=True, text=True).stdout


class Ssh(NamedTuple):
    """A running sshd, and the file of the keys that it lets in."""

    port: int
    authorized: Path


@contextmanager
def serving_postgres(port: int) -> Iterator[Service]:
    """Give a running PostgreSQL without databases, whose superuser comes in by the socket in its folder."""
    programs = postgres_programs()
    assert programs is not None
    # Not below pytest's own temporary folder, which another user may not enter: PostgreSQL refuses to be root.
    with tempfile.TemporaryDirectory(prefix="truefit-postgres-") as name:
        as_user: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres" if "postgres" in {one.pw_name for one in pwd.getpwall()} else "nobody")
            os.chown(name, user.pw_uid, user.pw_gid)
            as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        initdb = [*as_user, str(programs / "initdb"), "--pgdata", f"{name}/data", "--username=postgres", "--no-sync"]
        options = ["--auth-local=trust", "--auth-host=scram-sha-256"]
        subprocess.run([*initdb, *options], cwd=name, env=environment, check=True, capture_output=True)
        command = [*as_user, str(programs / "postgres"), "-D", f"{name}/data", "-p", str(port), "-k", name, "-F"]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
        ready = [str(programs / "pg_isready"), "--quiet", "--host", name, "--port", str(port)]
        service = Service(command, Path(name), environment, lambda: subprocess.run(ready).returncode == 0)
        try:
            service.start()
            yield service
        finally:
            service.kill(signal.SIGQUIT)


@contextmanager
def serving_ssh(folder: Path) -> Iterator[Ssh]:
    """Give a running sshd of the current user, with its own keys and settings in the folder."""
    port = free_port()
    key, authorized, config = folder / "host_key", folder / "authorized_keys", folder / "sshd_config"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    authorized.touch()
    lines = [
        *(f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {key}", f"AuthorizedKeysFile {authorized}", "PidFile none"),
        *("StrictModes no", "UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no"),
        *("PermitRootLogin prohibit-password", "Subsystem sftp internal-sftp"),
    ]
    config.write_text("\n".join(lines) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which sshd wants, and Debian's service makes as it starts
    command = [str(SSHD), "-D", "-e", "-f", str(config)]
    service = Service(command, folder, {"PATH": os.environ["PATH"]}, partial(answers_tcp, port))
    try:
        service.start()
        yield Ssh(port, authorized)
    finally:
        service.kill(signal.SIGTERM)
