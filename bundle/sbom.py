"""The packages that made a bundle, as a CycloneDX bill of materials (ECMA-424)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cmt.errors import InputError

ROOT = "cmt-export"
EXTRA = "export"


def check_installed() -> None:
    """Raise InputError where this program's own requirements are not known."""
    if not _is_installed(ROOT):
        raise InputError("cmt-export is not installed: pip install -e '.[export]' does that")


def build_sbom(weights_sha256: str | None, card: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The installed versions of all that cmt-export needs to export, and the network's weights.

    Has no time and no serial number, so that the same run makes the same file.

    Args:
        weights_sha256: None for random weights.
        card: the network's model card; weights with neither are no component.
    """
    needs = _requirements()
    references = {name: _reference(name) for name in sorted(needs)}
    weights = {
        "type": "machine-learning-model",
        "bom-ref": "weights",
        "name": "weights",
        **({"hashes": [{"alg": "SHA-256", "content": weights_sha256}]} if weights_sha256 else {}),
        **({"modelCard": card} if card else {}),
    }
    packages = [
        {
            "type": "application" if name == ROOT else "library",
            "bom-ref": reference,
            "name": name,
            "version": distribution(name).version,
            "purl": reference,
        }
        for name, reference in references.items()
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": next(p for p in packages if p["name"] == ROOT)},
        "components": [p for p in packages if p["name"] != ROOT]
        + ([weights] if weights_sha256 or card else []),
        "dependencies": [
            {"ref": references[name], "dependsOn": [references[n] for n in sorted(needs[name])]}
            for name in references
        ],
    }


def _reference(name: str) -> str:
    return f"pkg:pypi/{name}@{quote(distribution(name).version)}"


def _requirements() -> dict[str, set[str]]:
    """Every installed package that the root needs, directly or not -> what it needs itself."""
    needs: dict[str, set[str]] = {}
    pending: list[tuple[str, tuple[str, ...]]] = [(ROOT, (EXTRA,))]
    seen = set()
    while pending:
        name, extras = pending.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found = needs.setdefault(name, set())
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            other = canonicalize_name(requirement.name)
            if _applies(requirement, extras) and _is_installed(other):
                found |= {other} - {ROOT}  # whose extras name others of its own
                pending.append((other, tuple(sorted(requirement.extras))))
    return needs


def _applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
