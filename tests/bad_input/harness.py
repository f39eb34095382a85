"""Names that tests of bad input share."""

from tests.helpers import Outcome, run_as_typed, snapshot

__all__ = ["Outcome", "run_as_typed", "snapshot"]
