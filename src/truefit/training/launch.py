"""Stub."""

from pydantic import Field

from truefit.core.config import Settings


class LaunchSettings(Settings):
    """Section `launch`."""

    processes: int = Field(1, ge=1)
    hosts: int = Field(1, ge=1)
    rendezvous: str | None = None
    timeout: float = Field(60.0, gt=0)
    restarts: int = Field(0, ge=0)
