"""Help for stages that another host runs, in the same folder of a shared file system: processes that do tasks for them."""

import json
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

from truefit.core.addresses import Address, connected
from truefit.core.channel import BEAT_SECONDS, LINE_BYTES, Challenge, Channel, Greeting, Job, Proof, read_secret
from truefit.core.code import code_digest, read_code
from truefit.core.cores import usable_cores
from truefit.core.terminal import say
from truefit.core.workers import EndedError, Worker

SILENT_SECONDS = 2.0  # a stage greets at once; what is silent for so long is none, but perhaps a training
WAIT_SECONDS = 1.0


class RefusedError(Exception):
    """A host cannot help, or no more; the text says why."""


def help_stages(address: Address, timeout: float, modules: Mapping[Job, str]) -> None:
    """Wait until something listens at the address that is no stage, and help the stages that listen there until then.

    `modules` has what the processes run, by the stages' jobs; a stage's folder is their argument. Within `timeout` seconds it
    finds out when the first host is gone. Raises TruefitError as `connected` does.
    """
    refused = set[str]()  # stages, by the places of their secrets
    while True:
        with closing(Channel(connected(address), SILENT_SECONDS)) as channel:
            try:
                greeting = Greeting.model_validate_json(channel.receive(LINE_BYTES))
            except (OSError, ValueError):
                return
            if greeting.secret not in refused:
                try:
                    done = _help(channel, greeting, address, timeout, modules)
                    say(f"{greeting.job}: {done} parts done for {address}", error=True)
                except RefusedError as error:
                    refused.add(greeting.secret)
                    say(f"{address}: cannot help in {greeting.job} there: {error}; waits for the training", error=True)
        time.sleep(WAIT_SECONDS)


def _help(channel: Channel, greeting: Greeting, address: Address, timeout: float, modules: Mapping[Job, str]) -> int:
    """Do the stage's tasks until it has none, or is gone, and return their number; raises RefusedError."""
    secret, folder = _secret(greeting), Path(greeting.secret).parent
    with ExitStack() as stack:
        channels = [channel]
        try:
            _prove(channel, greeting, secret, timeout)
            while len(channels) < usable_cores():
                connection = socket.create_connection((address.host, address.port), SILENT_SECONDS)
                channels.append(stack.enter_context(closing(Channel(connection, SILENT_SECONDS))))
                _prove(channels[-1], Greeting.model_validate_json(channels[-1].receive(LINE_BYTES)), secret, timeout)
        except OSError:
            return 0
        except ValueError:
            raise RefusedError("found no proof that it has this folder") from None
        return _relay(stack, channels, modules[greeting.job], str(folder))


def _secret(greeting: Greeting) -> str:
    """Return what only those know that have the stage's folder, and its code; raises RefusedError elsewhere."""
    allowed = "allowed: the same folder of a file system that both hosts share"
    if greeting.code != code_digest(read_code()):
        raise RefusedError(f"found other code, {allowed}")
    try:
        return read_secret(Path(greeting.secret))
    except (OSError, ValueError):
        raise RefusedError(f"found no {greeting.secret} here, {allowed}") from None


def _prove(channel: Channel, greeting: Greeting, secret: str, timeout: float) -> None:
    """Have the stage prove that it has the folder, then prove it; raises OSError, or ValueError where it does not."""
    channel.send(Challenge(challenge=(challenge := secrets.token_hex(32))))
    if not Proof.model_validate_json(channel.receive(LINE_BYTES)).holds(secret, "stage", challenge):
        raise ValueError(greeting)
    channel.send(Proof.of(secret, "host", greeting.challenge))
    channel.trust(timeout)


def _relay(stack: ExitStack, channels: list[Channel], *command: str) -> int:
    """Have a process do what comes by each channel, until one of these ends; return how many tasks are done."""
    done = 0
    selector = stack.enter_context(DefaultSelector())
    for channel in channels:
        pair = channel, Worker(stack, 1, *command)
        for end in pair:
            selector.register(end, EVENT_READ, pair)
    beats = time.monotonic()
    while selector.get_map():
        found = selector.select(BEAT_SECONDS)
        if time.monotonic() - beats >= BEAT_SECONDS:
            beats = time.monotonic()
            with suppress(OSError):  # which its end tells
                for helped in channels:
                    helped.beat()
        if not found:
            continue
        (ready, _), *_ = found
        channel, worker = ready.data
        try:
            if ready.fileobj is channel:
                worker.begin(*json.loads(channel.receive()))
            else:
                channel.send(worker.answer())
                done += 1
        except OSError:
            return done
        except EndedError as error:
            for end in ready.data:
                selector.unregister(end)
            channel.close()
            channels.remove(channel)
            say(f"a process that did parts was ended {error}", error=True)
    raise RefusedError("found no process of this host left")
