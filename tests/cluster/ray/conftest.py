"""What these tests share."""

from tests.helpers.fixtures import _own_modules_are_forgotten, project  # noqa: F401
