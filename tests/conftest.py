"""What all tests share."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_the_caller() -> None:
    """Forget `PIPELINE_*` variables of whoever runs the tests: they are settings, and each test makes its own."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_")]:
        del os.environ[name]
