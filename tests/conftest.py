"""Fixtures that every part of the suite shares."""

import os

from hypothesis import HealthCheck, settings

# A failing example prints how to replay it; time is never asserted, so no deadline.
settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
# Landing must not depend on luck: CI draws the same examples each time, people draw new ones.
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
chosen = os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default")
settings.load_profile(chosen)
