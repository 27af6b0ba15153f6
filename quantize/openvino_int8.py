"""INT8 for OpenVINO: NNCF's post-training quantisation of the IR."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from typing import TYPE_CHECKING

from calib_data.prepared import PreparedImages

if TYPE_CHECKING:
    import openvino as ov


def quantize_ir(model: ov.Model, calibration: PreparedImages, batch: int) -> ov.Model:
    """A quantised copy of the float32 IR.

    `ModelType.TRANSFORMER` keeps the attention's Adds and its softmax float and lets
    SmoothQuant even out the LayerNorm outputs; on CMT it is both faster and closer to FP32
    than NNCF's default. Every calibration image is used, in order.
    """
    # Set before NNCF is imported, this keeps its telemetry from reporting usage.
    os.environ["NNCF_CI"] = "1"
    import nncf

    begins = list(range(0, len(calibration), batch))
    dataset = nncf.Dataset(begins, lambda begin: calibration.batch(begin, batch))
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # NNCF draws its own progress bars on standard output, which belongs to the caller.
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            dataset,
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
        )
