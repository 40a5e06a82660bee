"""Simulators with an environment of their own, and how a command finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervla.contracts import UserError
from hypervla.simulation import homes
from hypervla.simulation.homes import interpreter, is_home


def test_what_is_installed_here_is_at_home() -> None:
    assert is_home(None)
    assert is_home("numpy")
    assert not is_home("no_such_simulator")


def test_the_variable_names_the_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    monkeypatch.setenv("HYPERVLA_LIBERO_PYTHON", str(python))
    with pytest.raises(UserError, match="HYPERVLA_LIBERO_PYTHON names '.*python', but there is no such file"):
        interpreter("libero")
    python.touch()
    assert interpreter("libero") == python


def test_make_puts_it_beside_the_checkout_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPERVLA_SIMPLER_PYTHON", raising=False)
    monkeypatch.setattr(homes, "_checkout", lambda: tmp_path / "checkout")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make env-simpler builds it, or HYPERVLA_SIMPLER_PYTHON names"):
        interpreter("mani_skill")
    for root in (tmp_path, tmp_path / "checkout"):
        python = root / ".envs" / "simpler" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        assert interpreter("mani_skill") == python
