"""Which versions of aiohttp the wire is tested with: those at the ends of what is allowed."""

import pytest

from tools.aiohttp_versions import allowed, oldest


@pytest.mark.parametrize(
    ("dependency", "bounds", "first"),
    [
        ("aiohttp>=3.14.5,<3.15", ">=3.14.5,<3.15", "==3.14.5"),
        ("aiohttp >= 3.14.5, < 4", ">=3.14.5,<4", "==3.14.5"),
        ("aiohttp<4,>=3.14", "<4,>=3.14", "==3.14"),
    ],
)
def test_the_bounds_are_those_of_the_project(dependency: str, bounds: str, first: str) -> None:
    project = f'[project]\ndependencies = ["aiohttp-retry>=1", "{dependency}", "rich>=15"]\n'
    assert allowed(project) == bounds
    assert oldest(bounds) == first
