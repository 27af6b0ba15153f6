"""A network of a few thousand weights, for tests in the place of any."""

from cmt.variants import Variant

TINY = Variant("tiny", 32, 8, (8, 16, 32, 64), (1, 1, 2, 1), {"official": 3.6, "flyegle": 3.6})
