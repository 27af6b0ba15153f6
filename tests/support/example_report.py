"""A report of made-up figures, as an export would write it."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

Report = dict[str, Any]


def make_accuracy(top1: float, drop: float, interval: list[float]) -> dict[str, Any]:
    return {
        "top1": top1,
        "top5": 99.85,
        "images": 2000,
        "drop_pp": drop,
        "drop_ci95": interval,
        "agreement": 0.9925,
        "mcnemar_p": 0.774,
        "resolvable_pp": 0.4321,
    }


def make_latency(p50: float) -> dict[str, Any]:
    return {
        "p50": p50,
        "p90": p50 * 1.07,
        "p99": p50 * 1.31,
        "mean": p50 * 1.02,
        "std": p50 * 0.08,
        "quantiles": [p50 * (0.9 + 0.01 * i) for i in range(21)],
        "iterations": 812,
        "first": p50 * 2.2,
        "load": 411.2,
    }


def make_speedup(ratio: float) -> dict[str, Any]:
    """Its interval reaches 3 % to either side."""
    return {"ratio": ratio, "ci95": [0.97 * ratio, 1.03 * ratio], "rounds": 9}


def make_timing(disturbed: int = 0, rounds: int = 9) -> dict[str, Any]:
    usage = dict.fromkeys(("lost", "waited", "others"), 0.5 * disturbed / rounds)
    return {
        "rounds": rounds,
        "disturbed": disturbed,
        "busy": rounds - disturbed < 6,
        **usage,
        "cpu": 1.9,
        "stolen": 0.0,
        "throttled": 0.0,
        "switches_per_s": 2.5,
        "mhz": None,
    }


def make_row(target: str, precision: str, p50: float, speedup: float, **changes: Any) -> Report:
    row = {
        "target": target,
        "precision": precision,
        "artefact": f"{target}/cmt_ti.{precision}.xml",
        "bytes": 38_412_345,
        "measured_by": target,
        "accuracy": make_accuracy(93.05, 0.10, [-0.20, 0.40]),
        "latency_ms": make_latency(p50),
        "throughput_ips": 1000 / p50,
        "timing": make_timing(),
        "speedup_vs_baseline": make_speedup(speedup),
        "speedup_vs_fp32_graph": make_speedup(12.41 / p50),
        "peak_rss_mb": 214.6,
        "settings": {"threads": 2, "batch": 1},
        "reasons": {},
    }
    return {**row, **changes}


def make_changes() -> Report:
    """One class that lost, an image that was lost and one that was gained."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "JPEG")
    thumbnail = base64.b64encode(file.getvalue()).decode()
    fields = ("key", "label", "baseline", "answer")
    images = [("a.png", "Coat", "Coat", "Shirt"), ("b.png", "Bag", "Dress", "Bag")]
    return {
        "lost": 5,
        "gained": 3,
        "classes": [
            {"name": "Coat", "images": 200, "baseline_top1": 85.5, "top1": 83.25},
            {"name": "Bag", "images": 200, "baseline_top1": 98.0, "top1": 98.5},
        ],
        "images": [
            {
                **dict(zip(fields, words, strict=True)),
                "thumbnail": thumbnail,
            }
            for words in images
        ],
    }


def make_sensitivity(unit: str, decibels: float | None) -> Report:
    return {
        "recipe": "openvino",
        "unit": unit,
        "layers": 4,
        "macs": 12_000_000,
        "sqnr_db": decibels,
        "kl": None if decibels is None else 2.5e-4,
        "changed": 1 / 32,
        "images": 32,
        "by_layer": [
            {"layer": f"stages.0.blocks.{i}.part", "sqnr_db": alone, "kl": 1e-5, "changed": 0}
            for i, alone in enumerate(
                [None, 40.0] if decibels is None else [decibels + 2.5, decibels + 9]
            )
        ],
    }


def make_calibration() -> Report:
    methods = [("mse", 33.1, 1.2e-4), ("minmax", 29.7, 4.4e-4)]
    return {
        "recipe": "openvino",
        "chosen": "mse",
        "methods": [
            {"method": name, "sqnr_db": decibels, "kl": kl, "changed": 1 / 128}
            for name, decibels, kl in methods
        ],
        "images": 32,
    }


def make_fallback(met: bool) -> Report:
    points = [
        ([], 0, 0.05, 2.0, 1.0, False),
        (["ffn expand, stage 2", "stem"], 6, 0.00391, 0.25, 1.04, True),
    ]
    return {
        "target": "openvino",
        "precision": "int8",
        "met": met,
        "out_of_time": False,
        "ranking_images": 512,
        "cost": "measured time",
        "layers": 96,
        "points": [
            {
                "float": units,
                "float_layers": layers,
                "changed": changed,
                "drop_pp": drop,
                "slowdown": slowdown,
                "slowdown_ci95": [0.97 * slowdown, 1.03 * slowdown],
                "bytes": 11_000_000,
                "chosen": chosen,
                "pareto": True,
            }
            for units, layers, changed, drop, slowdown, chosen in points
        ],
    }


def make_report() -> Report:
    no_engine = "TensorRT is not installed here; cmt-bench measures the bundle on a GPU"
    return {
        "schema": 2,
        "created": "2026-11-22T19:00:00+00:00",
        "command": "cmt-export --variant ti --target openvino --target tensorrt --int8",
        "variant": "ti",
        "family": "official",
        "output": "logits",
        "img_size": [160, 160],
        "weights": {
            "source": "demo",
            "sha256": "ab" * 32,
            "parameters": 9_490_000,
            "macs": 620_000_000,
        },
        "images": {
            "validation": 2000,
            "validation_available": 10000,
            "calibration": 512,
            "source": "Fashion-MNIST, validation, bundled",
            "calibration_source": "Fashion-MNIST, calibration, bundled",
            "validation_skipped": 0,
            "calibration_skipped": 0,
            "validation_sha256": "cd" * 32,
            "calibration_sha256": "ef" * 32,
        },
        "warnings": [],
        "gates": {"max_drop_pp": 1.0, "passed": True, "failures": []},
        "baseline": make_row(
            "torch",
            "fp32",
            14.77,
            1.0,
            artefact=None,
            bytes=None,
            speedup_vs_fp32_graph=None,
            accuracy=make_accuracy(93.15, 0.0, [-0.10, 0.10]),
            reasons={
                "bytes": "the baseline is no exported file",
                "speedup_vs_fp32_graph": "the baseline is not compared with the files",
            },
        ),
        "results": [
            make_row("openvino", "fp32", 12.41, 1.19),
            make_row("openvino", "int8", 9.128, 1.62, bytes=10_204_000, changes=make_changes()),
            make_row(
                "tensorrt",
                "int8",
                1.0,
                1.0,
                artefact="model/cmt_ti.int8.onnx",
                measured_by="onnxruntime (simulated)",
                latency_ms=None,
                throughput_ips=None,
                speedup_vs_baseline=None,
                speedup_vs_fp32_graph=None,
                peak_rss_mb=None,
                accuracy=make_accuracy(92.75, 0.40, [0.05, 0.75]),
                reasons=dict.fromkeys(
                    (
                        "latency_ms",
                        "throughput_ips",
                        "speedup_vs_baseline",
                        "speedup_vs_fp32_graph",
                        "peak_rss_mb",
                    ),
                    no_engine,
                ),
            ),
        ],
        "parity": [
            {
                "stage": stage,
                "images": 32,
                "max_abs": 3.1e-6,
                "max_rel": 8.4e-7,
                "cosine": 1.0,
                "top1_agreement": 1.0,
                "tolerance": tolerance,
                "passed": True,
            }
            for stage, tolerance in (
                ("onnx", {"max_rel": 1e-4}),
                ("simplified", {"max_rel": 1e-4}),
                ("openvino/int8", {"cosine": 0.9}),
            )
        ],
        "sensitivity": None,
        "sensitivity_reason": "not asked for",
        "environment": {
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64-with-glibc2.36",
            "cpu": "AMD EPYC 7B13",
            "cpu_flags": ["avx2", "avx512_vnni"],
            "cores": 2,
            "gpu": None,
            "memory_gb": 15.6,
            "seed": 0,
            "packages": {"torch": "2.13.0+cpu", "openvino": "2026.4.1"},
        },
    }
