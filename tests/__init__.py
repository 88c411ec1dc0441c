from hypothesis import HealthCheck, settings

# No deadline: the tests must not fail because the machine is busy.
settings.register_profile("tests", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
