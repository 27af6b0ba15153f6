"""Every Python process whose PYTHONPATH has this folder knows the tiny network under its name."""

import sys
from pathlib import Path

from cmt.variants import VARIANTS

sys.path.append(str(Path(__file__).parents[1]))

from tiny_variant import TINY

VARIANTS[TINY.name] = TINY
