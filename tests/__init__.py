import os

from hypothesis import HealthCheck, settings


def examples(count: int) -> int:
    """The number of examples of a property test: ``count`` in `make test-all`, else a third of it."""
    return count if os.environ.get("TEST_EXAMPLES") == "all" else -(-count // 3)


# No deadline: the tests must not fail because the machine is busy.
settings.register_profile(
    "tests", deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
