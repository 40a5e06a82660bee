"""A checkpoint behind openpi's protocol, driven by openpi's own client, unmodified."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from tests import tiny
from tests.conformance.policy import check_policy
from tests.evaluation.point_suite import point_suite
from tests.fakes import POINT
from websockets.sync.client import connect
from websockets.sync.server import serve

from hypervla import cli
from hypervla.contracts import ActionChunk, Observation, TaskContext, Unusable, UserError
from hypervla.evaluation.rollout import evaluate
from hypervla.runtime import wire
from hypervla.runtime.client import RemoteCompiler, Served
from hypervla.runtime.compiler import Compiler, load
from hypervla.runtime.execution import OpenLoop
from hypervla.serving.server import PolicyServer


@pytest.fixture
def server(compiler: Compiler) -> Iterator[PolicyServer]:
    with PolicyServer(compiler, port=0) as server:
        yield server


@pytest.fixture
def client(server: PolicyServer) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", server.port)


def url(server: PolicyServer) -> str:
    return f"ws://127.0.0.1:{server.port}"


def message(seen: Observation, prompt: str, **more) -> dict:
    """What openpi's client is given: state in float64, as simulators have it."""
    state = np.asarray(seen.proprio, np.float64)
    return {"observation/top": seen.images["top"], "observation/state": state, "prompt": prompt, **more}


def test_the_server_speaks_first_and_says_what_it_drives(client: WebsocketClientPolicy, compiler: Compiler) -> None:
    about = client.get_server_metadata()
    assert about["embodiment"]["name"] == "point"
    assert about["checkpoint"] == compiler.digest


def test_openpis_client_gets_the_task_policys_actions(client: WebsocketClientPolicy, compiler: Compiler) -> None:
    policy = compiler.compile("find the goal", tiny.observation(0).images)
    for i in range(3):
        answer = client.infer(message(tiny.observation(i), "find the goal"))
        np.testing.assert_allclose(answer["actions"], policy.act(tiny.observation(i)).actions, atol=1e-6)
        assert answer["policy_id"] == policy.policy_id
        assert answer["server_timing"]["infer_ms"] >= answer["policy_timing"]["infer_ms"] > 0
        assert ("prev_total_ms" in answer["server_timing"]) == (i > 0)


def test_openpis_broker_hands_out_the_chunk_step_by_step(client: WebsocketClientPolicy) -> None:
    """It cuts every array of the answer along its first axis."""
    seen = tiny.observation(0)
    chunk = client.infer(message(seen, "find the goal"))["actions"]
    broker = ActionChunkBroker(client, action_horizon=len(chunk))
    for action in chunk:
        np.testing.assert_array_equal(broker.infer(message(seen, "find the goal"))["actions"], action)


def test_200_changed_prompts_and_never_an_answer_of_the_old_policy(
    client: WebsocketClientPolicy, compiler: Compiler
) -> None:
    first, seen = tiny.observation(0), tiny.observation(1)
    contexts = [TaskContext(sentence, first.images) for sentence in tiny.INSTRUCTIONS]
    policies = dict(zip(tiny.INSTRUCTIONS, compiler.compile_many(contexts), strict=True))
    assert len({policy.policy_id for policy in policies.values()}) == len(policies) >= 3
    random = np.random.default_rng(0)
    now = tiny.INSTRUCTIONS[0]
    for _ in range(200):
        now = random.choice([sentence for sentence in tiny.INSTRUCTIONS if sentence != now])
        for observation in (first, seen):
            answer = client.infer(message(observation, str(now)))
            assert answer["policy_id"] == policies[now].policy_id
            np.testing.assert_allclose(answer["actions"], policies[now].act(observation).actions, atol=1e-6)


class Counting:
    """A compiler that counts what it compiles."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler, self.asked = compiler, []
        self.embodiment, self.digest, self.provenance = compiler.embodiment, compiler.digest, compiler.provenance

    def compile(self, instruction, images):
        self.asked.append(instruction)
        return self.compiler.compile(instruction, images)


def test_a_connection_an_episode_and_a_prompt_begin_a_new_task_policy(compiler: Compiler) -> None:
    counting = Counting(compiler)
    with PolicyServer(counting, port=0) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        for episode in ("one", "one", "two", "two", "one"):
            client.infer(message(tiny.observation(0), "find the goal", episode_id=episode))
        assert len(counting.asked) == 3
        client.infer(message(tiny.observation(0), "go to the goal", episode_id="one"))
        assert len(counting.asked) == 4
        other = WebsocketClientPolicy("127.0.0.1", server.port)
        other.infer(message(tiny.observation(0), "go to the goal", episode_id="one"))
        assert len(counting.asked) == 5
        client.infer(message(tiny.observation(0), "go to the goal", episode_id="one"))
        assert len(counting.asked) == 5, "the first connection goes on"


def test_the_new_task_policy_has_seen_the_new_first_image(client: WebsocketClientPolicy, compiler: Compiler) -> None:
    ids = []
    for i in range(3):
        answer = client.infer(message(tiny.observation(i), "find the goal", episode_id=str(i)))
        ids.append(answer["policy_id"])
        assert ids[-1] == compiler.compile("find the goal", tiny.observation(i).images).policy_id
    assert len(set(ids)) == 3


def array_of(dtype: str, shape: list[int]) -> dict:
    return {b"__ndarray__": True, b"data": b"", b"dtype": dtype, b"shape": shape}


def letters(random: np.random.Generator) -> str:
    """Up to four letters, of which NumPy could make a dtype or a syntax error."""
    return "".join(random.choice([*"|<>=,()[]{}:!?'biufcSUVOMm0123489 "], int(random.integers(0, 5))))


def flipped(good: bytes, random: np.random.Generator) -> bytes:
    """With a bit or more of its first name changed, or of how its array is said to be one."""
    place = good.index(b"observation/top") + int(random.integers(0, len(b"observation/top") + 1 + 2 + len(wire.ARRAY)))
    return good[:place] + bytes([good[place] ^ int(random.integers(1, 256))]) + good[place + 1 :]


def malformed(random: np.random.Generator) -> bytes | str:
    """One of many ways to be no request."""
    good = wire.pack(message(tiny.observation(0), "find the goal"))
    ways = [
        lambda: random.bytes(int(random.integers(1, 300))),
        lambda: good[: int(random.integers(1, len(good)))],
        lambda: flipped(good, random),
        lambda: wire.pack(message(tiny.observation(0), "find")) + b"x",
        lambda: msgpack.packb({"x": array_of(letters(random), [0])}),
        lambda: msgpack.packb({"x": {b"__npgeneric__": True, b"data": b"1", b"dtype": letters(random)}}),
        lambda: msgpack.packb({"x": array_of("<f4", random.integers(-3, 2**40, 3).tolist())}),
        lambda: "a text",
        lambda: msgpack.packb([1, 2, 3]),
        lambda: msgpack.packb({"prompt": "find the goal"}),
        lambda: wire.pack(message(tiny.observation(0), "find the goal", secret="x")),
        lambda: wire.pack(message(tiny.observation(0), " ")),
        lambda: wire.pack(message(tiny.observation(0), "find " * 200)),
        lambda: wire.pack({**message(tiny.observation(0), "find"), "observation/state": np.full(2, np.nan)}),
        lambda: wire.pack({**message(tiny.observation(0), "find"), "observation/state": np.zeros(5)}),
        lambda: wire.pack({**message(tiny.observation(0), "find"), "observation/top": np.zeros((2, 2, 3), np.uint8)}),
        lambda: msgpack.packb({"x": array_of("|O", [0])}),
    ]
    return ways[int(random.integers(len(ways)))]()


def test_1000_malformed_messages_are_refused_and_others_go_on(server: PolicyServer, client: WebsocketClientPolicy):
    random = np.random.default_rng(0)
    wanted = client.infer(message(tiny.observation(0), "find the goal"))["actions"]
    with connect(url(server), compression=None) as socket:
        socket.recv()
        for i in range(1000):
            bad = malformed(random)
            socket.send(bad)
            answer = socket.recv(10)
            assert isinstance(answer, str), f"a refusal is a text, and not the answer to {bad!r}"
            said = json.loads(answer)
            assert said["error"] in ("WireError", "UserError")
            assert said["message"].endswith((".", "?"))
            assert "\n" not in said["message"]
            assert "Traceback" not in said["message"]
            if i % 100 == 0:
                found = client.infer(message(tiny.observation(0), "find the goal"))["actions"]
                np.testing.assert_array_equal(found, wanted)
        socket.send(wire.pack(message(tiny.observation(0), "find the goal")))
        np.testing.assert_array_equal(wire.unpack(socket.recv(10))["actions"], wanted)


def test_openpis_client_raises_the_refusal(client: WebsocketClientPolicy) -> None:
    with pytest.raises(RuntimeError, match="The instruction is empty"):
        client.infer(message(tiny.observation(0), " "))


def test_a_refused_prompt_leaves_no_policy_behind(client: WebsocketClientPolicy) -> None:
    client.infer(message(tiny.observation(0), "find the goal"))
    with pytest.raises(RuntimeError):
        client.infer(message(tiny.observation(0), "x" * 600))
    answer = client.infer(message(tiny.observation(1), "find the goal"))
    fresh = client.infer(message(tiny.observation(1), "find the goal", episode_id="fresh"))
    assert answer["policy_id"] == fresh["policy_id"], "the next episode begins with what is seen then"


def test_a_message_that_is_too_large_ends_only_its_connection(
    server: PolicyServer, client: WebsocketClientPolicy
) -> None:
    with connect(url(server), compression=None) as socket:
        socket.recv()
        with pytest.raises(Exception, match="1009"):
            socket.send(b"x" * (wire.MOST_BYTES + 1))
            socket.recv(10)
    assert client.infer(message(tiny.observation(0), "find the goal"))["actions"].shape == (2, 3)


def test_health_is_answered_while_the_networks_compute(compiler: Compiler) -> None:
    release = threading.Event()

    class Slow(Counting):
        def compile(self, instruction, images):
            release.wait(10)
            return super().compile(instruction, images)

    with PolicyServer(Slow(compiler), port=0) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        waiting = threading.Thread(target=client.infer, args=(message(tiny.observation(0), "find the goal"),))
        waiting.start()
        time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=5) as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        assert waiting.is_alive()
        release.set()
        waiting.join(10)


def test_a_port_that_is_taken_is_refused(server: PolicyServer, compiler: Compiler) -> None:
    with pytest.raises(UserError, match=f"Could not listen on 127.0.0.1:{server.port} .*: choose another --port"):
        PolicyServer(compiler, port=server.port).__enter__()
    with pytest.raises(UserError, match="Could not listen on"):
        asyncio.run(PolicyServer(compiler, port=server.port).run())
    with pytest.raises(UserError, match="Could not listen on 127.0.0.1:99999 .*: choose another --port"):
        PolicyServer(compiler, port=99_999).__enter__()


def test_what_is_missing_to_serve_is_said_and_not_waited_for(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    with pytest.raises(ModuleNotFoundError):
        PolicyServer(compiler, port=0).__enter__()


# Our own client


def test_a_remote_policy_keeps_the_contract_and_acts_as_the_local_one(server: PolicyServer, compiler: Compiler) -> None:
    remote = RemoteCompiler(url(server), POINT)
    assert remote.digest == compiler.digest
    check_policy(lambda: remote.compile("find the goal", tiny.observation(0).images), tiny.observation)
    policy, local = (c.compile("find the goal", tiny.observation(0).images) for c in (remote, compiler))
    for i in range(3):
        np.testing.assert_allclose(
            policy.act(tiny.observation(i)).actions, local.act(tiny.observation(i)).actions, atol=1e-6
        )
    assert policy.policy_id == local.policy_id
    assert policy.last_timing.total > 0


def test_nobody_there_is_said(compiler: Compiler) -> None:
    with PolicyServer(compiler, port=0) as server:
        gone = url(server)
    with pytest.raises(UserError, match=f"No policy server answers at {gone} .*hypervla serve"):
        RemoteCompiler(gone, POINT)
    for address in ("ws://127.0.0.1:99999", "ws://127.0.0.1:port", "ws://"):
        with pytest.raises(UserError, match=f"No policy server answers at {address} "):
            RemoteCompiler(address, POINT)


def test_a_server_that_dies_is_said(compiler: Compiler) -> None:
    with PolicyServer(compiler, port=0) as server:
        policy = RemoteCompiler(url(server), POINT).compile("find the goal", tiny.observation(0).images)
        policy.act(tiny.observation(0))
    with pytest.raises(UserError, match="The policy server is gone"):
        policy.act(tiny.observation(0))


def test_a_server_for_another_robot_is_refused(server: PolicyServer) -> None:
    with pytest.raises(UserError, match="drives point, but other was wanted"):
        RemoteCompiler(url(server), replace(POINT, name="other"))


class OtherServer:
    """Another's: openpi's says next to nothing of itself, and answers with whatever it is made for."""

    def __init__(self, metadata: dict, answers: list[bytes | str]) -> None:
        self.metadata, self.answers = metadata, answers

    def __enter__(self) -> str:
        self._server = serve(self._talk, "127.0.0.1", 0)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _talk(self, socket) -> None:
        socket.send(wire.pack(self.metadata))
        for answer in self.answers:
            socket.recv()
            socket.send(answer)


GOOD = wire.pack({"actions": np.zeros((2, POINT.action_size))})


def test_two_servers_at_one_address_are_told_apart_by_what_they_say() -> None:
    digests = []
    for about in ({"policy": "pi0"}, {"policy": "pi0-fast"}):
        with OtherServer(about, []) as address:
            digests.append(RemoteCompiler(address, POINT).digest.replace(address, "there"))
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("first", "match"),
    [
        ("no such camera", "no such camera"),
        ("", "it gives no reason"),
        (wire.pack({"actions": np.zeros((2, 9))}), "of 3 numbers"),
    ],
)
def test_a_server_that_has_never_given_fitting_actions_is_of_no_use(first: bytes | str, match: str) -> None:
    with OtherServer({}, [first]) as address:
        policy = RemoteCompiler(address, POINT).compile("find the goal", {})
        with pytest.raises(Unusable, match=match):
            policy.act(tiny.observation(0))
    with OtherServer({}, [GOOD, first]) as address:
        policy = RemoteCompiler(address, POINT).compile("find the goal", {})
        policy.act(tiny.observation(0))
        with pytest.raises(UserError, match=match) as refusal:
            policy.act(tiny.observation(0))
        assert not isinstance(refusal.value, Unusable), "one trial fails, others may not"


def test_what_the_server_cannot_explain_is_refused_without_its_insides(compiler: Compiler) -> None:
    class Broken(Counting):
        def compile(self, instruction, images):
            if instruction == "break":
                raise RuntimeError("secret")
            return super().compile(instruction, images)

    with PolicyServer(Broken(compiler), port=0) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        with pytest.raises(RuntimeError, match="ServerError") as refusal:
            client.infer(message(tiny.observation(0), "break"))
        assert "secret" not in str(refusal.value)
        assert client.infer(message(tiny.observation(0), "find the goal"))["actions"].shape == (2, 3)


# The commands


def test_the_command_serves_until_it_is_stopped(checkpoint_folder: Path) -> None:
    command = [sys.executable, "-m", "hypervla.cli", "serve", str(checkpoint_folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        assert said.startswith(f"Serving {checkpoint_folder} for point at ws://127.0.0.1:")
        answer = RemoteCompiler(said.split()[-1], POINT).compile("find the goal", {}).act(tiny.observation(0))
        assert answer.actions.shape == (2, 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read().strip() == "hypervla: Stopped serving."


def test_times_that_are_none_are_not_believed() -> None:
    for taken in (float("nan"), float("inf"), -1.0, "soon"):
        row = {"actions": np.zeros((2, POINT.action_size)), "policy_timing": {"infer_ms": taken}}
        with OtherServer({}, [wire.pack(row)]) as address:
            policy = RemoteCompiler(address, POINT).compile("find the goal", {})
            policy.act(tiny.observation(0))
            assert 0 < policy.last_timing.total < 60


@pytest.mark.parametrize(
    ("middle", "said"), [(0.9, "The checkpoint looks at the middle 90 %"), (1.0, "The server was sent whole pictures")]
)
def test_it_is_said_whether_a_server_looks_as_the_protocol_asks(
    checkpoint_folder: Path, tmp_path: Path, middle: float, said: str
) -> None:
    suite, about = replace(point_suite(), middle=0.9), {"trials": 1, "seed": 0, "execution": OpenLoop(), "workers": 1}
    with PolicyServer(load(checkpoint_folder), port=0, served=Served("tiny", middle=middle)) as server:
        assert evaluate(url(server), suite, out=tmp_path, **about).conditions.scene.startswith(said)


def test_a_server_is_evaluated_like_its_checkpoint(
    server: PolicyServer, checkpoint_folder: Path, tmp_path: Path
) -> None:
    suite = point_suite()
    about = {"trials": 2, "seed": 0, "execution": OpenLoop(), "workers": 1}
    local = evaluate(checkpoint_folder, suite, out=tmp_path / "local", **about)
    remote = evaluate(url(server), suite, out=tmp_path / "remote", **about)
    rows = [[(t.task, t.trial, t.success, t.steps, t.error) for t in found.trials] for found in (local, remote)]
    assert rows[0] == rows[1]
    assert remote.conditions.checkpoint == local.conditions.checkpoint


def test_an_evaluation_says_what_its_server_runs_on(checkpoint_folder: Path, tmp_path: Path) -> None:
    served = Served("tiny", "cuda:1", "onnx int8 0123")
    about = {"trials": 1, "seed": 0, "execution": OpenLoop(), "workers": 1, "out": tmp_path}
    with PolicyServer(load(checkpoint_folder), port=0, served=served) as server:
        found = evaluate(url(server), point_suite(), **about)
        with pytest.raises(UserError, match="An engine is for a checkpoint, but 'ws://.*leave out --engine"):
            evaluate(url(server), point_suite(), **about, engine="cuda:fp16")
    assert (found.conditions.device, found.conditions.engine) == ("cuda:1", "onnx int8 0123")
    assert found.provenance["checkpoint"]["name"] == "tiny"


def test_what_is_evaluated_has_to_be_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["embedded", "--server", "ws://127.0.0.1:1"]):
        with pytest.raises(SystemExit):
            cli.main(["eval", *words, "--suite", "metaworld-mt10"])
        assert "either a checkpoint, or --server ws://HOST:PORT" in capsys.readouterr().err
    for name in ("metaworld-mt10", "libero-object"):
        with pytest.raises(SystemExit):
            cli.main(["eval", "ws://127.0.0.1:1", "--suite", name])
        assert "is the address of a server: say --server ws://127.0.0.1:1" in capsys.readouterr().err
    for words in (["expert", "--engine", "e.onnx"], ["--server", "ws://127.0.0.1:1", "--device", "cuda"]):
        with pytest.raises(SystemExit):
            cli.main(["eval", *words, "--suite", "libero-object"])
        assert "leave out --engine and --device" in capsys.readouterr().err


def test_openpis_client_closes_a_drawer() -> None:
    """A Metaworld episode in the shipped checkpoint's hands, over the wire."""
    from hypervla.simulation.metaworld import MetaworldEnvironment

    environment = MetaworldEnvironment("drawer-close-v3")
    try:
        with PolicyServer(load("metaworld_small"), port=0) as server:
            client = WebsocketClientPolicy("127.0.0.1", server.port)
            environment.reset(1_000_000)
            for _ in range(150):
                seen = environment.observe()
                asked = {"observation/corner2": seen.images["corner2"], "observation/state": seen.proprio}
                answer = client.infer({**asked, "prompt": environment.instructions[0]})
                if environment.execute(ActionChunk(answer["actions"][:1])).success:
                    return
    finally:
        environment.close()
    raise AssertionError("the drawer is still open")
