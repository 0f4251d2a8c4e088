"""The model and the demo volumes that come with the package."""

from __future__ import annotations

from pathlib import Path

import ssn.assets

ASSETS = Path(ssn.assets.__file__).parent
DEFAULT_BUNDLE = ASSETS / "t1-compact"
DEMO_VOLUME = ASSETS / "demo.nii.gz"
DEMO_HEALTHY_VOLUME = ASSETS / "demo_healthy.nii.gz"
