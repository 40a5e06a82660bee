"""A checkpoint behind openpi's websocket protocol, for robots and simulators that run in processes of their own.

Each connection is one robot. A new connection, another instruction or another `episode_id` begins an episode: its first
image and the instruction are compiled into a task policy, which answers until the next one begins. The networks run in
one thread of their own, so that no connection waits for another's message to be read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from hypervla.contracts import UserError
from hypervla.runtime import wire
from hypervla.runtime.client import SERVER, Served
from hypervla.runtime.protocols import Compiler, NamedPolicy

Answer = TypeVar("Answer")
PORT = 8000
log = logging.getLogger(__name__)


@dataclass
class Session:
    """One connection's episode."""

    policy: NamedPolicy | None = None
    key: tuple[str, str | None] | None = None
    """Instruction and episode that the policy was compiled for."""


class PolicyServer:
    """Answers on `host`:`port`; port 0 takes any free one. Use as a context manager, or `run` until interrupted."""

    def __init__(
        self,
        compiler: Compiler[NamedPolicy],
        host: str = "127.0.0.1",
        port: int = PORT,
        served: Served | None = None,
    ) -> None:
        self.compiler, self.host, self.port = compiler, host, port
        self.served = served or Served("a checkpoint")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hypervla-inference")

    def metadata(self) -> dict[str, Any]:
        """What a client is told when it connects."""
        robot = self.compiler.embodiment
        return {
            "server": SERVER,
            "served": asdict(self.served),
            "checkpoint": self.compiler.digest,
            "embodiment": robot.to_json(),
            "provenance": dict(self.compiler.provenance),
        }

    def __enter__(self) -> PolicyServer:
        """Serve from a thread of its own, and know the port. Raises UserError for a port that cannot be had."""
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._in_thread, args=(started,), daemon=True)
        self._thread.start()
        started.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._worker.shutdown()

    def _in_thread(self, started: Future[None]) -> None:
        try:
            asyncio.run(self.run(lambda: started.set_result(None)))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until told to stop; `ready` is called once the port is open. Raises UserError for an address that
        cannot be had."""
        from websockets.asyncio.server import serve

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        options = {"compression": None, "max_size": wire.MOST_BYTES, "process_request": _healthy}
        try:
            server = await serve(self._connection, self.host, self.port, **options)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"Could not listen on {self.host}:{self.port} ({reason}): choose another --port or --host."
            ) from error
        async with server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            ready()
            await self._stop.wait()

    async def _connection(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        session, before = Session(), None
        with suppress(ConnectionClosed):
            await socket.send(wire.pack(self.metadata()))
            async for data in socket:
                began = time.perf_counter()
                try:
                    request = wire.decode_request(wire.unpack(data), self.compiler.embodiment)
                    answer = await self._computed(partial(self._answer, session, request))
                except UserError as error:
                    await socket.send(_said(type(error).__name__, str(error)))
                    continue
                except Exception:
                    session.policy = session.key = None
                    log.exception("A request could not be answered.")
                    message = "The server could not answer, for a reason of its own: its log has it."
                    await socket.send(_said("ServerError", message))
                    continue
                answer["server_timing"] = {"infer_ms": 1000 * (time.perf_counter() - began)}
                if before is not None:
                    answer["server_timing"]["prev_total_ms"] = before
                await socket.send(wire.pack(answer))
                before = 1000 * (time.perf_counter() - began)

    async def _computed(self, call: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    def _answer(self, session: Session, request: wire.Request) -> dict[str, Any]:
        """In the inference thread: the chunk, and which task policy it is from."""
        key = (request.prompt, request.episode)
        if session.policy is None or session.key != key:
            session.policy = session.key = None  # what goes wrong here must not leave the old policy at work
            session.policy = self.compiler.compile(request.prompt, request.observation.images)
            session.key = key
        chunk = session.policy.act(request.observation)
        timing = session.policy.last_timing
        return {
            "actions": chunk.actions,
            "policy_id": session.policy.policy_id,
            "policy_timing": {"infer_ms": 1000 * timing.total},
        }


def _said(kind: str, message: str) -> str:
    """A refusal, as a text frame: openpi's client raises it."""
    return json.dumps({"error": kind, "message": message})


def _healthy(connection: Any, request: Any) -> Any:
    """Answers plain HTTP at /healthz."""
    return connection.respond(HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None
