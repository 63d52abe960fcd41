"""Makes pytest run SQLAlchemy's suite for dialects."""

import pytest
from sqlalchemy.dialects import registry  # noqa: F401

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402,F401,F403
