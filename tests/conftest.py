"""Lets tests of every room import the helpers that stand beside the operator cases."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "ops"))
