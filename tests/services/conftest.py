"""One set of services for all tests that use it; without them these tests are skipped, or fail in .ci/run."""

from collections.abc import Iterator

import pytest
from helpers_server import free_port
from helpers_services import Person, Ssh, Team, require_services, serving_postgres, serving_ssh


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    require_services()
    with serving_ssh(tmp_path_factory.mktemp("ssh")) as ssh:
        yield ssh


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory, ssh: Ssh) -> Iterator[Team]:
    """What an administrator has set up, with two users."""
    port = free_port()
    with serving_postgres(port) as postgres:
        team = Team(tmp_path_factory.mktemp("team"), postgres, port, ssh.port)
        try:
            team.store.start()
            team.server.start()
            team.add_users()
            yield team
        finally:
            team.server.kill()
            team.store.kill()


@pytest.fixture(scope="session")
def alice(team: Team) -> Person:
    """Who trains."""
    return team.join("alice")


@pytest.fixture(scope="session")
def bob(team: Team) -> Person:
    """Who takes up what she has trained."""
    return team.join("bob")
