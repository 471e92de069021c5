"""Fixtures that every part of the suite shares."""

import os

from hypothesis import HealthCheck, settings

# A failing example prints how to replay it; time is never asserted, so no deadline.
settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
