"""Laws of the project itself: light imports, sizes, no traces of a machine, a complete wheel, consistent pins."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

LONGEST_FILE = 350
LONGEST_FUNCTION = 75
LARGEST_FILE = 16_500_000
"""Bytes; a checkpoint of 16 MB fits."""


def run(code: str) -> str:
    """What a fresh interpreter prints for this code."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cheapest(code: str, tries: int = 5) -> float:
    """Least processor time in seconds of a fresh interpreter running this code; other load does not disturb it."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(tries):
        before = spent()
        run(code)
        times.append(spent() - before)
    return min(times)


def files_of_the_project(repository: Path) -> list[Path]:
    """All files git tracks or would track."""
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split("\0")
    return [repository / name for name in names if name and (repository / name).is_file()]


def requirements(extras: dict[str, list[str]], extra: str) -> Iterator[str]:
    """Names of the packages an extra installs, following `hypervla[other]`."""
    for row in extras[extra]:
        if inner := re.fullmatch(r"hypervla\[(.*)\]", row):
            for name in inner[1].split(","):
                yield from requirements(extras, name)
        else:
            yield re.split(r"[\[<>=~! ]", row)[0]


HELP = "from hypervla.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"


def test_importing_hypervla_pulls_in_no_torch() -> None:
    assert run("import sys, hypervla; print('torch' in sys.modules, 'numpy' in sys.modules)").split() == ["False"] * 2


def test_help_pulls_in_no_torch() -> None:
    assert run(HELP + "import sys; print('torch' in sys.modules)").endswith("False\n")


@pytest.mark.parametrize(
    "module", ["contracts", "embodiment", "arguments", "data.normalize", "runtime.execution", "runtime.task_policy"]
)
def test_what_a_robot_loads_pulls_in_no_torch(module: str) -> None:
    assert run(f"import sys, hypervla.{module}; print('torch' in sys.modules)") == "False\n"


def test_importing_takes_less_than_a_fifth_of_a_second() -> None:
    assert cheapest("import hypervla") < 0.2


def test_help_answers_within_half_a_second() -> None:
    assert cheapest(HELP) < 0.5


def test_public_names_are_few_and_all_there() -> None:
    import hypervla

    assert len(hypervla.__all__) <= 12
    assert dir(hypervla) == sorted(hypervla.__all__)
    for name in hypervla.__all__:
        assert getattr(hypervla, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hypervla.no_such_name


def test_no_file_mentions_a_machine(repository: Path) -> None:
    private = re.compile(rb"""(?:^|[\s"'=(:`])/(?:home|root|work|Users|workspace)/\w|file:///(?!tmp)\w""", re.MULTILINE)
    found = [
        f"{path.relative_to(repository)}: {match[0].decode(errors='replace')}"
        for path in files_of_the_project(repository)
        for match in private.finditer(path.read_bytes())
        if path.suffix not in (".safetensors", ".mp4", ".png")
    ]
    assert not found, found


def test_files_and_functions_stay_readable(repository: Path) -> None:
    long = []
    for path in files_of_the_project(repository):
        if path.suffix != ".py" or "src" not in path.relative_to(repository).parts:
            continue
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > LONGEST_FILE:
            long.append(f"{path.name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (length := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION:
                long.append(f"{path.name}: {node.name} has {length} lines")
    assert not long, long


def test_no_file_is_large(repository: Path) -> None:
    large = [path.name for path in files_of_the_project(repository) if path.stat().st_size > LARGEST_FILE]
    assert not large, large


def test_every_requirement_has_an_exact_version(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = {extra for extra in extras if (repository / f"constraints-{extra}.txt").is_file()}
    assert own == {"libero", "simpler"}, "those of an environment of its own"
    for name, chosen in [("constraints.txt", extras.keys() - own), *((f"constraints-{one}.txt", {one}) for one in own)]:
        rows = [row for row in (repository / name).read_text().splitlines() if not row.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", row) for row in rows), "constraints are exact public versions"
        pinned = {row.split("==")[0].lower().replace("_", "-") for row in rows}
        wanted = {re.split(r"[\[<>=~! ]", row)[0] for row in project["dependencies"]}
        wanted = wanted.union(*(requirements(extras, extra) for extra in chosen))
        assert wanted <= pinned, wanted - pinned
    assert "torch==2.13.0" in (repository / "constraints.txt").read_text().splitlines()


def test_an_error_about_a_missing_package_names_an_extra_that_has_it(repository: Path) -> None:
    from hypervla.failures import EXTRAS

    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        assert package.replace("_", "-") in set(requirements(extras, extra)), package


def test_the_wheel_holds_every_file_of_the_package(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = repository / "src"
    files = {str(path.relative_to(package)) for path in files_of_the_project(repository) if package in path.parents}
    assert files <= inside, files - inside
    assert not [name for name in inside if name.startswith("tests")]
