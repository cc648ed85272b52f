"""The versions that pyproject.toml allows, and those that constraints.txt pins."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

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
