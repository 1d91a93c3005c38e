"""Messages of user errors, for tests that assert on their words."""

from collections.abc import Callable

import pytest

from gnnscale.contract.errors import UserError


def message_of(act: Callable[[], object]) -> str:
    """Return the message of the user error that `act` raises."""
    with pytest.raises(UserError) as caught:
        act()
    return str(caught.value)
