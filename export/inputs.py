"""Finding and checking what a run starts from: weights, images, and how their classes match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cmt import strict_json
from cmt.bundle.manifest import follows
from cmt.calib_data.image_range import ImageRange
from cmt.calib_data.preprocessing import Preprocessing
from cmt.calib_data.sources import FASHION_LABELS, FolderImages, ImageSource, bundled
from cmt.checkpoints import load_noted, named_weights
from cmt.errors import InputError
from cmt.export.class_order import match_classes
from cmt.export.options import BUNDLED_VAL_COUNT, ExportOptions
from cmt.files import sha256_file
from cmt.network import CMT
from cmt.printing import printable
from cmt.weight_files import MEMORY, Weights

UNLABELLED_COUNT = 64
"""Images looked at where there are no labels: enough for parity and golden outputs."""


@dataclass
class Inputs:
    """Everything a run reads, opened and found to fit together.

    Attributes:
        model: the reference network, evaluation mode.
        weights_source: `demo`, `random`, the file's path, and which of its weights if told, or
            `weight_files.MEMORY`.
        weights_sha256: of the weight file, or of `weight_files.Weights`; None for random weights.
        class_names: from the weights' metadata, else from the validation folders, else empty.
        validation: images that every file is checked and measured on.
        validation_count: how many of them; None for all.
        label_map: class index of the validation source -> of the network; None where the
            accuracy cannot be measured, for `not_labelled`.
        assumed_order: the validation folders' names, where nothing but their order says which
            class each stands for; else empty.
        calibration: images for INT8 and for the gate of FP16, None where there are none or neither
            is asked for.
        tuning: images to fine-tune on, None where these are the calibration images.
    """

    model: CMT
    weights_source: str
    weights_sha256: str | None
    class_names: Sequence[str]
    preprocessing: Preprocessing
    validation: ImageSource
    validation_count: int | None
    label_map: dict[int, int] | None
    not_labelled: str | None
    calibration: ImageSource | None
    tuning: ImageSource | None = None
    assumed_order: Sequence[str] = ()
    warnings: list[str] = field(default_factory=list)


def resolve(options: ExportOptions, needs_calibration: bool) -> Inputs:
    """Load the weights and open the images; raises InputError for whatever does not fit."""
    default = "demo" if options.variant == "ti" else "random"
    held = options.weights if isinstance(options.weights, Weights) else None
    source = default if options.weights is None else MEMORY if held else str(options.weights)
    path = None if held else named_weights(source, options.variant)
    model = _load(options, held or path)
    is_random = held is None and path is None
    _refuse_one_output(model, source)
    labels, names = _known_labels(model)
    fits_bundled = labels == FASHION_LABELS
    preprocessing = _preprocessing(options, model)
    image_range = preprocessing.image_range
    validation, count, label_map, reason = _validation(
        options, model, names, fits_bundled, source, image_range
    )
    inputs = Inputs(
        model=model,
        weights_source=": ".join(filter(None, [source, options.weights_key])),
        weights_sha256=held.sha256 if held else None if path is None else sha256_file(path),
        class_names=_shown(labels or (validation.class_names if label_map else ())),
        preprocessing=preprocessing,
        validation=validation,
        validation_count=count,
        label_map=label_map,
        not_labelled=reason,
        calibration=None,
        assumed_order=validation.class_names if label_map and not names else (),
        warnings=[f"{source}: {note}" for note in model.notes],
    )
    if options.qat_data is not None:
        inputs.tuning = FolderImages(options.qat_data, image_range)
    # FP16 sets no ranges, but the accuracy gate chooses on them.
    chosen_on = options.precisions and (options.calib_data is not None or fits_bundled)
    if needs_calibration or chosen_on:
        inputs.calibration = _calibration(options, fits_bundled or is_random, image_range)
    sources = (inputs.validation, inputs.calibration, inputs.tuning)
    inputs.warnings += dict.fromkeys(line for s in sources if s is not None for line in s.remarks)
    if is_random:
        inputs.warnings.append(
            "the weights are random: files and latencies are real, answers mean nothing"
        )
    return inputs


def _preprocessing(options: ExportOptions, model: CMT) -> Preprocessing:
    found = Preprocessing.for_model(model.img_size, model.metadata, model.family)
    return replace(
        found,
        in_graph=options.embed_preprocess,
        image_range=options.image_range or found.image_range,
    )


def _load(options: ExportOptions, weights: Path | Weights | None) -> CMT:
    import torch

    torch.manual_seed(options.seed)
    return load_noted(
        options.variant,
        weights,
        options.img_size,
        features=options.output == "features",
        weights_key=options.weights_key,
    )


def _refuse_one_output(model: CMT, source: str) -> None:
    if model.head is not None and model.num_classes == 1:
        raise InputError(
            f"{source} has a classifier of one output, which is always the first of one: put a row "
            "of zeros before its row and its bias, so that softmax gives what sigmoid gave, or "
            "export the features (--output features)"
        )


def _known_labels(model: CMT) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The labels to show, and every naming of the classes that folders may use."""
    try:
        names = [
            _class_names(strict_json.parse(model.metadata[key]))
            for key in ("labels", "wnids")
            if key in model.metadata
        ]
    except (ValueError, TypeError) as error:
        raise InputError(f"the weights' labels are no JSON list ({error}): correct them") from error
    lengths = {len(naming) for naming in names}
    if model.head is not None and lengths - {model.num_classes}:
        raise InputError(
            f"the weights' metadata names {max(lengths)} labels for {model.num_classes} classes"
        )
    return (names[0] if names else ()), names


def _shown(names: Sequence[str]) -> Sequence[str]:
    """The classes' names, all of which a manifest and a report may hold; raises InputError."""
    for name in names:
        if not follows("name", name):
            raise InputError(
                f"the class name '{printable(name[:60])}' is no visible line of 1 to 1000 "
                "characters: correct it in the weights' metadata, or the name of its folder"
            )
    return names


def _class_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str | int) for name in value):
        raise ValueError("expected names")
    return tuple(str(name) for name in value)


def _validation(
    options: ExportOptions,
    model: CMT,
    names: list[tuple[str, ...]],
    fits_bundled: bool,
    source: str,
    image_range: ImageRange | None,
) -> tuple[ImageSource, int | None, dict[int, int] | None, str | None]:
    """(images, how many, class map, why there is no class map)."""
    features = "feature maps have no top-1" if options.output == "features" else None
    if options.val_data is not None:
        folder = FolderImages(options.val_data, image_range)
        if features:
            return folder, options.val_count or UNLABELLED_COUNT, None, features
        if folder.labels is None:
            raise InputError(f"--val-data {options.val_data} has no class folders (class/name.jpg)")
        label_map = match_classes(folder.class_names, names, model.num_classes)
        return folder, options.val_count, label_map, None
    images = bundled("validation")
    if fits_bundled and not features:
        identity = {i: i for i in range(len(FASHION_LABELS))}
        return images, options.val_count or BUNDLED_VAL_COUNT, identity, None
    reason = features or (
        "the weights are random" if source == "random" else "no --val-data was given"
    )
    return images, options.val_count or UNLABELLED_COUNT, None, reason


def _calibration(
    options: ExportOptions, bundled_fits: bool, image_range: ImageRange | None
) -> ImageSource:
    if options.calib_data is not None:
        return FolderImages(options.calib_data, image_range)
    if bundled_fits:
        return bundled("calibration")
    raise InputError(
        "INT8 needs images like those the weights were trained on: give --calib-data FOLDER "
        "(training images; validation ones would flatter the result)"
    )
