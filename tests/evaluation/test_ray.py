"""Evaluations on a Ray cluster: the same trials as with processes of this machine, whatever happens to the machines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from tests.evaluation.point_suite import die_loading, load_point, point_suite, refuse_to_load
from tests.evaluation.test_rollout import INTERRUPTED, SEED, outcomes, run

from hypervla import cli
from hypervla.contracts import UserError
from hypervla.evaluation import ray_crew
from hypervla.evaluation.film import load_filmstrips
from hypervla.evaluation.ray_crew import gpu_share
from hypervla.evaluation.rollout import evaluate
from hypervla.runtime.execution import OpenLoop

pytest.importorskip("ray", reason="Ray is not installed: pip install 'hypervla[ray]'")

QUIETLY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
"""Nothing is reported or written outside the temporary folder; and workers do not wait for whatever else runs here."""


@pytest.fixture(scope="module")
def cluster(repository: Path) -> Iterator:
    """Two machines of one core each, as far as Ray can tell."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUIETLY | {"PYTHONPATH": f"{repository}:{repository / 'src'}"}).items():
            patch.setenv(name, value)
        others = psutil.Process().children(recursive=True)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        ours = [process for process in psutil.Process().children(recursive=True) if process not in others]
        yield cluster
        cluster.shutdown()
    _, left = psutil.wait_procs(ours, timeout=10)
    for process in left:  # of the machine that was lost, so that Ray no longer knows of them
        process.kill()
    psutil.wait_procs(left)


def test_the_results_are_those_of_processes_seed_for_seed(cluster, tmp_path: Path) -> None:
    suite = point_suite(crash=(SEED + 1,))
    here = run(tmp_path / "here", suite)
    there = run(tmp_path / "there", suite, ray=cluster.address, workers=None)
    assert outcomes(there) == outcomes(here)
    assert there.conditions == here.conditions
    assert there.provenance["machine"]["workers"] == there.provenance["machine"]["ray_nodes"] == 2
    assert load_filmstrips(tmp_path / "there" / "films") == load_filmstrips(tmp_path / "here" / "films")


def test_what_processes_began_the_cluster_goes_on_with(cluster, tmp_path: Path) -> None:
    whole = run(tmp_path, point_suite(), workers=1)
    lines = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:4]))
    heard = []
    again = run(
        tmp_path, point_suite(), ray=cluster.address, on_trial=lambda trial, done, total: heard.append((done, total))
    )
    assert heard == [(4, 6), (5, 6), (6, 6)]
    assert outcomes(again) == outcomes(whole)


def test_a_dead_actor_fails_its_trial_and_is_replaced(cluster, tmp_path: Path) -> None:
    trials = run(tmp_path, point_suite(die=(SEED + 1,)).only(["find"]), ray=cluster.address, workers=1).trials
    assert [trial.success for trial in trials] == [True, False, True]
    assert "the worker died: The actor died unexpectedly" in str(trials[1].error)


def load_files(checkpoint: Path, device: str):
    """A compiler whose digest is where the checkpoint lies and what is in it."""
    compiler = load_point(checkpoint, device)
    compiler.digest = f"{checkpoint} {(checkpoint / 'text' / 'weights').read_bytes()}"
    return compiler


def test_the_checkpoint_is_sent(cluster, tmp_path: Path) -> None:
    here = tmp_path / "mine"
    (here / "text").mkdir(parents=True)
    (here / "text" / "weights").write_bytes(b"12")
    asked = {"trials": 1, "seed": 0, "execution": OpenLoop(), "workers": 1, "load": load_files}
    results = evaluate(here, point_suite(), out=tmp_path / "out", ray=cluster.address, **asked)
    folder, content = results.conditions.checkpoint.split()
    assert content == str(b"12")
    assert Path(folder).name == "mine"
    assert not Path(folder).exists(), "what was sent is gone again"
    assert here.exists()


def test_another_hypervla_is_refused(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_crew, "code_commit", lambda: "1234abcd")
    with pytest.raises(UserError, match="of the Ray cluster runs .*, but 1234abcd runs here"):
        run(tmp_path, point_suite(), ray=cluster.address, workers=1)
    assert not list(tmp_path.iterdir())


def test_a_machine_without_hypervla_is_refused(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    (tmp_path / "hypervla").mkdir()
    (tmp_path / "hypervla" / "__init__.py").touch()
    elsewhere = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    monkeypatch.setattr(ray, "init", partial(ray.init, runtime_env=elsewhere))
    with pytest.raises(UserError, match="lacks this hypervla .*No module named 'hypervla.evaluation'"):
        run(tmp_path / "out", point_suite(), ray=cluster.address, workers=1)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"load": refuse_to_load}, UserError, "no checkpoint called point"),
        ({"load": die_loading}, UserError, "While loading the checkpoint, the worker died"),
        ({"workers": 3}, UserError, "has 2 cores, but 3 workers were asked for"),
        ({"device": "cuda"}, UserError, "has 0 cores beside a GPU, but 1 workers"),
        ({"device": "cuda:1"}, UserError, "Ray chooses the GPU"),
        ({"engine": "policy.onnx"}, UserError, "'policy.onnx' is a file of this machine"),
        ({"ray": "127.0.0.1:1"}, UserError, "no Ray cluster to work with at '127.0.0.1:1'"),
        ({"ray": "nonsense"}, UserError, "no Ray cluster to work with at 'nonsense'"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    cluster, tmp_path: Path, change: dict, error: type, says: str
) -> None:
    with pytest.raises(error, match=says):
        run(tmp_path, **({"suite": point_suite(), "workers": 1, "ray": cluster.address} | change))
    assert not list(tmp_path.iterdir())


def test_a_machine_that_is_lost_fails_only_what_it_was_at(cluster, tmp_path: Path) -> None:
    lost = next(node for node in cluster.list_all_nodes() if not node.head)
    raylet = psutil.Process(lost.all_processes["raylet"][0].process.pid)

    def lose(trial, done: int, total: int) -> None:
        if done == 4:
            workers = raylet.children(recursive=True)
            cluster.remove_node(lost, allow_graceful=False)
            for worker in workers:
                with suppress(psutil.NoSuchProcess):  # it has gone with its raylet
                    worker.kill()

    results = run(tmp_path, point_suite(pause=0.02), trials=6, ray=cluster.address, on_trial=lose)
    (failed,) = [trial for trial in results.trials if not trial.success]
    assert "the worker died" in str(failed.error)


def test_ctrl_c_is_one_line_and_stops_the_cluster_it_started(tmp_path: Path, repository: Path) -> None:
    program = INTERRUPTED.format(out=str(tmp_path)).replace("trials=20", "trials=20, ray='local'")
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=repository,
        env=os.environ | QUIETLY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while child.stdout.readline().strip() not in ("3", ""):
        pass
    started = psutil.Process(child.pid).children(recursive=True)
    assert started
    os.killpg(child.pid, signal.SIGINT)
    printed, _ = child.communicate(timeout=30)
    (stopped,) = [line for line in printed.splitlines() if line.startswith("stopped:")]
    assert "of 40 trials kept" in stopped
    _, left = psutil.wait_procs(started, timeout=10)
    assert not left
    assert (tmp_path / "results.jsonl").read_bytes().count(b"\n") > 3, "the conditions and every trial so far"


def test_a_suite_with_an_environment_of_its_own_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["eval", "expert", "--suite", "simpler-widowx", "--ray"])
    assert "where --ray does not follow" in " ".join(capsys.readouterr().err.split())


def test_workers_share_gpus_so_that_all_find_room() -> None:
    assert gpu_share([(8, 2)], 2) == 1.0
    assert gpu_share([(8, 2)], 3) == 0.5
    assert gpu_share([(8, 1), (8, 4)], 16) == 0.125, "eight cores beside one GPU"
    assert gpu_share([(6, 1)], 6) == 0.1666, "six of them are no more than one"
