"""Cut the bundled calibration files out of Fashion-MNIST's training set, byte for byte.

    python -m cmt.training.make_calibration_set fashion-mnist

takes 1,024 training images, evenly from the classes, seed 0, and writes them as compressed
IDX files; gzip carries no time stamp, so the files are the same every time.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np

from cmt.calib_data.sources import BUNDLED, IdxImages, choose

COUNT = 1024


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write unsigned bytes of any rank as a compressed IDX file."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 9, mtime=0))


def main(source: Path) -> None:
    train = IdxImages(
        source / "train-images-idx3-ubyte.gz", source / "train-labels-idx1-ubyte.gz", "train"
    )
    indices = choose(train, COUNT, seed=0)
    write_idx(BUNDLED / "calibration-images-idx3-ubyte.gz", train.pixels[indices])
    labels = np.asarray(train.labels, np.uint8)[indices]
    write_idx(BUNDLED / "calibration-labels-idx1-ubyte.gz", labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
