"""Section `launch`: the processes and hosts that share the work, which decide no result."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from truefit.core.addresses import Address
from truefit.core.config import PARAMS, Params, Settings, invalid_value, require_defaults


def _check_address(found: object) -> object:
    """Return it where it is None or HOST:PORT; YAML takes a port alone, or HOST: PORT, for something else than text."""
    try:
        if found is not None:
            Address.parse(str(found))
    except ValueError:
        raise ValueError("HOST:PORT, such as 10.0.0.1:29500") from None
    return found


class LaunchSettings(Settings):
    """Section `launch`: the processes that share a training; decides no result."""

    processes: int = Field(1, ge=1)
    hosts: int = Field(1, ge=1)
    rendezvous: Annotated[str | None, BeforeValidator(_check_address)] = None
    timeout: float = Field(60.0, ge=5, le=86_400)
    restarts: int = Field(0, ge=0, le=1000)

    @model_validator(mode="after")
    def _hosts_share_processes(self) -> Self:
        if self.processes & (self.processes - 1):
            raise invalid_value("processes", self.processes, "a power of two")
        if self.hosts & (self.hosts - 1):
            raise invalid_value("hosts", self.hosts, "a power of two, since processes is one")
        if self.processes % self.hosts:
            raise invalid_value("processes", self.processes, f"a multiple of launch.hosts, {self.hosts}")
        if self.processes == 1:
            require_defaults(self, ("restarts",), "with processes 1")
        return self

    @model_validator(mode="after")
    def _hosts_meet(self) -> Self:
        if self.hosts == 1:
            require_defaults(self, ("rendezvous",), "with hosts 1")
        elif self.rendezvous is None:
            raise invalid_value("rendezvous", None, f"HOST:PORT where the first of {self.hosts} hosts listens")
        return self

    @property
    def processes_here(self) -> int:
        """The processes of each host."""
        return self.processes // self.hosts

    @property
    def address(self) -> Address | None:
        """Where the first host listens; None: on loopback, at a free port."""
        return None if self.rendezvous is None else Address.parse(self.rendezvous)


def launch_here() -> LaunchSettings:
    """Return the section of params.yaml in the current folder, or without one the defaults; raises SettingsError."""
    params = Params() if PARAMS.exists() else None
    return params.section("launch", LaunchSettings) if params and "launch" in params.values else LaunchSettings()
