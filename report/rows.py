"""The objects of report.json and comparison.json, a class each.

`report/schema` says what each field means, and which may be absent; a test holds these to it.
"""

from __future__ import annotations

from typing import TypedDict

from cmt.quantize.error_row import Errors
from cmt.targets.base import Prediction
from cmt.targets.machine import Environment, Hardware
from cmt.targets.settings import Otherwise, Settings


class _Accuracy(TypedDict):
    top1: float
    top5: float
    images: int
    drop_pp: float | None
    drop_ci95: list[float] | None
    agreement: float | None
    mcnemar_p: float | None


class Accuracy(_Accuracy, total=False):
    resolvable_pp: float


class _Latency(TypedDict):
    p50: float
    p90: float
    p99: float
    mean: float
    std: float
    iterations: int
    first: float | None
    load: float | None


class Latency(_Latency, total=False):
    quantiles: list[float]


class ClassCounts(TypedDict):
    images: int
    baseline_top1: float
    top1: float


class ClassChange(ClassCounts):
    name: str


class ImageChange(TypedDict):
    key: str
    label: str
    baseline: str
    answer: str
    thumbnail: str


class Changes(TypedDict):
    lost: int
    gained: int
    classes: list[ClassChange]
    images: list[ImageChange]


class Changed(TypedDict, total=False):
    changes: Changes


class Layers(TypedDict):
    int8_in_file: int
    run: dict[str, int]


class _Ran(TypedDict):
    settings: Settings


class Ran(_Ran, total=False):
    layers: Layers
    otherwise: dict[str, Otherwise]


class Speedup(TypedDict):
    ratio: float
    ci95: list[float]
    rounds: int


class _Disturbance(TypedDict):
    lost: float | None
    cpu: float | None
    waited: float | None
    stolen: float | None
    throttled: float | None
    others: float | None
    switches_per_s: float | None
    mhz: float | None


class Disturbance(_Disturbance, total=False):
    load: float | None


class Timing(Disturbance):
    rounds: int
    disturbed: int
    busy: bool


class _Timed(TypedDict, total=False):
    timing: Timing


class Speed(_Timed):
    latency_ms: Latency | None
    throughput_ips: float | None
    speedup_vs_baseline: Speedup | None
    speedup_vs_fp32_graph: Speedup | None
    peak_rss_mb: float | None


UNTIMED: Speed = {
    "latency_ms": None,
    "throughput_ips": None,
    "speedup_vs_baseline": None,
    "speedup_vs_fp32_graph": None,
    "peak_rss_mb": None,
}


class BesideTorch(TypedDict):
    images: int
    agreement: float
    max_rel: float


class UnknownImages(TypedDict):
    images: int
    top1: float | None
    agreement: float | None


class Answering(Changed, total=False):
    beside_torch: BesideTorch
    unknown_images: UnknownImages


class _Row(TypedDict):
    target: str
    precision: str
    artefact: str | None
    bytes: int | None
    measured_by: str | None
    accuracy: Accuracy | None
    reasons: dict[str, str]


class Row(_Row, Speed, Ran, Answering, total=False):
    scenario: str
    simulated: bool
    predicted: Prediction
    gpu_ms: float | None
    power_mw: dict[str, float]
    joules_per_image: dict[str, float] | None


class Parity(TypedDict):
    stage: str
    images: int
    max_abs: float
    max_rel: float
    cosine: float
    top1_agreement: float | None
    tolerance: dict[str, float]
    passed: bool


class Weights(TypedDict):
    source: str
    sha256: str | None
    parameters: int
    macs: int


class _Images(TypedDict):
    validation: int
    validation_available: int
    calibration: int
    source: str | None
    calibration_source: str | None
    validation_skipped: int
    calibration_skipped: int
    validation_sha256: str | None
    calibration_sha256: str | None


class Images(_Images, total=False):
    ranking: int
    validation_left_out: int
    calibration_left_out: int


class _Scheme(TypedDict):
    training: list[float | None]
    held_out: list[float | None]
    chosen: int


class Scheme(_Scheme, total=False):
    method: str


class Tuning(TypedDict):
    epochs: int
    images: int
    source: str
    sha256: str | None
    schemes: dict[str, Scheme]


class _Gates(TypedDict):
    max_drop_pp: float | None
    passed: bool | None
    failures: list[str]


class Gates(_Gates, total=False):
    unconfirmed: list[str]


class LayerErrors(Errors):
    layer: str


class _PartErrors(Errors):
    recipe: str
    unit: str
    layers: int
    macs: int
    images: int


class PartErrors(_PartErrors, total=False):
    by_layer: list[LayerErrors]


class Method(Errors):
    method: str


class Calibration(TypedDict):
    recipe: str
    chosen: str
    methods: list[Method]
    images: int


class _Kept(TypedDict):
    float: list[str]  # the type, below it in one class, would be this


class Point(_Kept):
    float_layers: int
    changed: float
    drop_pp: float | None
    slowdown: float | None
    slowdown_ci95: list[float] | None
    bytes: int
    chosen: bool
    pareto: bool


class Found(TypedDict):
    met: bool
    out_of_time: bool
    layers: int
    points: list[Point]


class Fallback(Found):
    target: str
    precision: str
    ranking_images: int
    cost: str


class _AskedImages(TypedDict):
    source: str
    images: int
    unknown: int
    skipped: int
    left_out: int


class AskedImages(_AskedImages, total=False):
    answered_by: list[str]


class _Machine(TypedDict):
    machine: str
    measured: str
    command: str
    environment: Environment
    results: list[Row]


class Machine(_Machine, total=False):
    images: AskedImages


class _About(TypedDict):
    created: str
    command: str
    variant: str
    family: str
    img_size: list[int]
    weights: Weights
    images: Images


class _Report(_About):
    schema: int
    output: str
    warnings: list[str]
    gates: Gates
    baseline: Row
    results: list[Row]
    parity: list[Parity]
    sensitivity: list[PartErrors] | None
    environment: Environment


class Extras(TypedDict, total=False):
    fine_tuning: Tuning
    sensitivity_reason: str
    calibration: list[Calibration]
    fallbacks: list[Fallback]
    machines: list[Machine]


class Report(_Report, Extras):
    """report.json."""


class SourceRow(_About):
    path: str
    machine: str
    max_drop_pp: float | None


class Origin(Hardware):
    machine: str
    measured: str
    variant: str
    weights_sha256: str | None


class MeasuredRow(Row, Origin):
    accuracy_from: str | None


class ComparedRow(MeasuredRow):
    report: int
    name: str


class Requirements(TypedDict):
    clauses: list[str]
    kept_by: list[str]
    failures: list[str]


class Comparison(TypedDict):
    schema: int
    warnings: list[str]
    reports: list[SourceRow]
    rows: list[ComparedRow]
    requirements: Requirements | None
