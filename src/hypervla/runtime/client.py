"""A policy over the wire: whatever speaks openpi's protocol, ours or another's, as a compiler of task policies.

Imports no PyTorch: a simulator's environment has this and nothing heavy.
"""

from __future__ import annotations

import hashlib
import math
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypervla.contracts import ActionChunk, Image, Observation, Unusable, UserError
from hypervla.embodiment import Embodiment
from hypervla.runtime import wire
from hypervla.runtime.task_policy import Timing

SERVER = "hypervla"
"""What a server of ours calls itself."""


@dataclass(frozen=True)
class Served:
    """What a server of ours says of its checkpoint, for reports."""

    name: str
    device: str = "cpu"
    engine: str | None = None
    """Runtime, precision and sha256 of an exported engine; None is eager PyTorch."""
    middle: float = 1.0
    """Share of the area of the cameras' views that it looks at, in the middle."""


PATIENCE, FIRST_PATIENCE = 60.0, 600.0
"""Seconds to wait for an answer, and for the first one of a connection: a server may compile its networks then."""


class Connection:
    """One connection to a server, which is one episode."""

    def __init__(self, url: str) -> None:
        """Raises Unusable where nobody answers."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        try:
            # Many servers compute on their event loop and answer no ping meanwhile.
            options: Any = {"compression": None, "max_size": wire.MOST_BYTES, "ping_interval": None}
            self._socket = connect(url, open_timeout=PATIENCE, **options).__enter__()  # until `close`
            self._patience = FIRST_PATIENCE
            self.metadata = wire.unpack(self._socket.recv(PATIENCE))
        except (OSError, TimeoutError, ValueError, OverflowError, WebSocketException) as error:
            reason = str(error) or type(error).__name__
            raise Unusable(f"No policy server answers at {url} ({reason}): start one with hypervla serve.") from error

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer. Raises UserError for a refusal, Unusable when it is gone."""
        from websockets.exceptions import WebSocketException

        try:
            self._socket.send(wire.pack(message))
            answer = self._socket.recv(self._patience)
        except (OSError, TimeoutError, WebSocketException) as error:
            raise Unusable(f"The policy server is gone ({str(error) or type(error).__name__}).") from error
        self._patience = PATIENCE
        if isinstance(answer, str):
            *_, reason = ["it gives no reason", *answer.strip().splitlines()]
            raise UserError(f"The policy server refused: {reason}")
        return wire.unpack(answer)

    def close(self) -> None:
        self._socket.close()


class RemoteCompiler:
    """A policy server as a compiler: each `compile` is a connection of its own, with which the server begins an
    episode."""

    def __init__(self, url: str, embodiment: Embodiment) -> None:
        """A server of ours takes what the camera delivers; any other is sent what a policy looks at, cropped and
        turned, as openpi's own clients do. Raises UserError where nobody answers, or for a server of another robot."""
        self._url = url
        connection = Connection(url)
        connection.close()
        about = connection.metadata
        self.is_foreign = about.get("server") != SERVER
        self.has_answered = False
        """Whether it has ever given actions that fit."""
        self.digest = str(about.get("checkpoint", f"whatever answers at {url} and says {_digest(about)}"))
        known = about.get("provenance") if about.get("server") == SERVER else None
        self.served = _served(about.get("served"), url)
        """What its server says of the checkpoint."""
        self.provenance: Mapping[str, Any] = known if isinstance(known, dict) else {"server": url}
        robot = about.get("embodiment")
        if isinstance(robot, dict) and robot.get("name") != embodiment.name:
            raise UserError(
                f"The server at {url} drives {robot.get('name')}, but {embodiment.name} was wanted: "
                "serve another checkpoint, or choose another suite."
            )
        self.embodiment = embodiment if robot is None else _robot(robot, url)
        """As its server knows it: with the cameras that it looks through."""

    def compile(self, instruction: str, images: Mapping[str, Image]) -> RemotePolicy:
        """Begin an episode. The server compiles when the first observation comes, which is when the images are sent."""
        return RemotePolicy(Connection(self._url), instruction, self)


class RemotePolicy:
    """One episode's policy on a server; a Policy."""

    def __init__(self, connection: Connection, instruction: str, server: RemoteCompiler) -> None:
        self.instruction, self.embodiment = instruction, server.embodiment
        self._connection, self._server = connection, server
        weakref.finalize(self, connection.close)
        self.last_timing = Timing(0.0, 0.0, 0.0)
        self.policy_id: str | None = None
        """What the server calls the task policy that answered last."""

    def act(self, observation: Observation) -> ActionChunk:
        """The next actions in the robot's units, inside its limits. Raises UserError for a refusal; Unusable where
        another's server has never done anything else, since then it is made for something else."""
        self.embodiment.check_observation(observation, needs_proprio=self.embodiment.proprio_size > 0)
        if self._server.is_foreign:
            images = {c.name: c.view(observation.images[c.name]) for c in self.embodiment.cameras}
            observation = Observation(images, observation.proprio)
        began = time.perf_counter()
        try:
            answer = self._connection.ask(wire.encode_request(wire.Request(observation, self.instruction)))
            chunk = self.embodiment.clip(wire.decode_actions(answer, self.embodiment).actions)
        except UserError as error:
            if self._server.is_foreign and not self._server.has_answered:
                raise Unusable(str(error)) from error
            raise
        self._server.has_answered = True
        self.policy_id = answer.get("policy_id")
        self.last_timing = _timing(answer, time.perf_counter() - began)
        return chunk


def _digest(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(wire.pack(metadata)).hexdigest()[:16]


def _served(row: Any, url: str) -> Served:
    if not isinstance(row, dict):
        return Served(url, "unknown")
    engine, middle = row.get("engine"), row.get("middle")
    return Served(
        str(row.get("name")),
        str(row.get("device")),
        None if engine is None else str(engine),
        middle if isinstance(middle, float) else 1.0,
    )


def _robot(row: Any, url: str) -> Embodiment:
    try:
        return Embodiment.from_json(row)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The server at {url} does not say what robot it drives ({error!r}).") from error


def _timing(answer: Mapping[str, Any], total: float) -> Timing:
    """The server's own time as the policy's, and the way there and back as preprocessing."""
    about = answer.get("policy_timing")
    taken = about.get("infer_ms") if isinstance(about, dict) else None
    seconds = taken / 1000 if isinstance(taken, int | float) and 0 <= taken < math.inf else total
    return Timing(max(0.0, total - seconds), 0.0, seconds)
