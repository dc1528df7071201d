"""No test fails because the machine is busy with something else."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
LONG = 1000  # seconds that nothing takes unless it hangs, however busy the machine


def test_the_profile_of_all_tests_has_no_deadline_and_the_same_examples_every_time() -> None:
    assert settings.default is not None
    assert settings.default.deadline is None
    assert settings.default.derandomize
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_no_test_has_a_deadline_of_its_own_or_a_time_limit_that_other_work_can_use_up() -> None:
    for path in sorted(TESTS.rglob("*.py")):
        if path == Path(__file__):
            continue
        text = path.read_text()
        assert not re.search(r"deadline=(?!None,  # a busy)", text), path
        assert all(int(limit) >= LONG for limit in re.findall(r"\btimeout=(\d+)", text)), path
        assert "sleep(" not in text, path
