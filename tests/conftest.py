"""Fixtures for all tests, which run in one process for each core."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

LONGEST = ("test_docs.py", "test_quantize.py", "test_random_networks.py")
settings.register_profile(
    "steady",
    deadline=None,  # a busy machine is no failure
    derandomize=True,  # the same examples in every run
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start: the cores are taken


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny networks lose more by waking threads than they gain, most of all beside other work."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
