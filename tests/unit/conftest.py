"""What many tests of the engine start from."""

import pytest

from calotype import wire
from calotype.config import Home


@pytest.fixture
def context(tmp_path):
    """A new installation, in ``home`` below the test's directory."""
    context = wire.build(home=Home(tmp_path / "home"))
    yield context
    context.close()
