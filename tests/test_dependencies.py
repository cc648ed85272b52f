"""The versions that pyproject.toml allows, and those that constraints.txt pins."""

import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from paths import ROOT
from uv import find_uv_bin

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LISTS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
REQUIREMENTS = sorted({text for each in LISTS for text in each if not text.startswith("dailydialog-gym[")})
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in LINES)}


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_a_dependency_has_a_lower_bound_which_its_pin_satisfies(text):
    requirement = Requirement(text)
    assert [bound.operator for bound in requirement.specifier] == [">="]
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_a_dependency_has_one_lower_bound():
    names = [Requirement(text).name for text in REQUIREMENTS]
    assert len(names) == len(set(names))


@pytest.mark.packaging
def test_the_lower_bounds_can_be_installed_together():
    command = [find_uv_bin(), "pip", "compile", "-q", "--resolution=lowest-direct", "--extra=dev", "pyproject.toml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "Failed to fetch" in done.stderr or "error sending request" in done.stderr:
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    pins = [line.split("==") for line in done.stdout.splitlines() if "==" in line]
    found = {canonicalize_name(name): version for name, version in pins}
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["train"]):
        (bound,) = requirement.specifier
        lowest = Version(bound.version).release
        assert Version(found[canonicalize_name(requirement.name)]).release[: len(lowest)] == lowest, requirement
