"""Fixtures for all tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny networks lose more by waking threads than they gain, most of all beside other work."""
    torch.set_num_threads(1)
