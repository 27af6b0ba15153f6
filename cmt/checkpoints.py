"""Reading checkpoints: both families' key layouts, every container they come in.

A network's own parameter names (`stages.0.blocks.1.attention.q.weight`) are translated to
and from the names of the two public layouts; nothing else knows those.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cmt.errors import InputError
from cmt.files import write_whole
from cmt.network import CMT, build
from cmt.position import resize_relative_table, resize_stage_table
from cmt.variants import (
    FAMILIES,
    FLYEGLE,
    HEADS,
    REDUCTIONS,
    STRIDES,
    VARIANTS,
    Family,
    get_variant,
    parse_size,
)

State = dict[str, Tensor]

_STAGE_LETTERS = "abcd"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# (pattern in a network's name, what the layout has in its place), applied in turn.
_Names = list[tuple[str, str | Callable[[re.Match[str]], str]]]
_OFFICIAL_NAMES: _Names = [
    (r"stem\.(\d)\.(conv|norm)", lambda m: f"stem_{m[2]}{int(m[1]) + 1}"),
    (r"stages\.(\d)\.positions\.0\.table", lambda m: f"relative_pos_{_letter(m[1])}"),
    (r"stages\.(\d)\.entry\.conv", lambda m: f"patch_embed_{_letter(m[1])}.proj"),
    (r"stages\.(\d)\.entry\.norm", lambda m: f"patch_embed_{_letter(m[1])}.norm"),
    (r"stages\.(\d)\.blocks", lambda m: f"blocks_{_letter(m[1])}"),
    (r"\.attention\.reduce\.conv", ".attn.sr.0"),
    (r"\.attention\.reduce\.norm", ".attn.sr.1"),
    (r"\.attention\.", ".attn."),
    (r"\.ffn\.expand\.", ".mlp.conv1.0."),
    (r"\.ffn\.expand_norm\.", ".mlp.conv1.2."),
    (r"\.ffn\.depthwise\.", ".mlp.proj."),
    (r"\.ffn\.depthwise_norm\.", ".mlp.proj_bn."),
    (r"\.ffn\.project\.", ".mlp.conv2.0."),
    (r"\.ffn\.project_norm\.", ".mlp.conv2.1."),
    (r"\.lpu\.", ".proj."),
    (r"^head\.features\.", "_fc."),
    (r"^head\.norm\.", "_bn."),
    (r"^head\.classifier\.", "head."),
]
_EXPAND = ".IRFFN.conv1x1_gelu_bn.conv3x3_gelu_bn"
_FLYEGLE_NAMES: _Names = [
    (r"stem\.0\.conv", "stem.conv3x3_gelu_bn_downsample.conv3x3_gelu_bn.0"),
    (r"stem\.0\.norm", "stem.conv3x3_gelu_bn_downsample.conv3x3_gelu_bn.2"),
    (
        r"stem\.([12])\.(conv|norm)",
        lambda m: (
            f"stem.conv3x3_gelu_bn_list.{int(m[1]) - 1}.conv3x3_gelu_bn."
            f"{'0' if m[2] == 'conv' else '2'}"
        ),
    ),
    (r"stages\.(\d)\.entry\.conv", lambda m: f"pool{int(m[1]) + 1}.patch_aggregation"),
    (
        r"stages\.(\d)\.positions\.(\d+)\.table",
        lambda m: f"stage{int(m[1]) + 1}.block_list.{m[2]}.LMHSA.position_embeeding",
    ),
    (r"stages\.(\d)\.blocks", lambda m: f"stage{int(m[1]) + 1}.block_list"),
    (r"\.attention\.reduce\.conv", ".LMHSA.sr"),
    (r"\.attention\.reduce\.norm", ".LMHSA.norm"),
    (r"\.attention\.", ".LMHSA."),
    (r"\.ffn\.expand\.", f"{_EXPAND}.0."),
    (r"\.ffn\.expand_norm\.", f"{_EXPAND}.2."),
    (r"\.ffn\.depthwise\.", ".IRFFN.conv3x3_dw.conv."),
    (r"\.ffn\.depthwise_norm\.", ".IRFFN.act.1."),
    (r"\.ffn\.project\.", ".IRFFN.conv1x1_pw.0."),
    (r"\.ffn\.project_norm\.", ".IRFFN.conv1x1_pw.1."),
    (r"\.lpu\.", ".LPU.conv_3x3_dw.conv."),
    (r"^head\.features\.", "fc."),
    (r"^head\.classifier\.", "classifier."),
]
_LAYOUTS = {"official": _OFFICIAL_NAMES, "flyegle": _FLYEGLE_NAMES}
_HEAD_KEYS = ("_fc.", "_bn.", "head.", "fc.", "classifier.")
_MARKERS = {"official": "patch_embed_a.proj.weight", "flyegle": "pool1.patch_aggregation.weight"}


def _letter(stage: str) -> str:
    return _STAGE_LETTERS[int(stage)]


def layout_name(name: str, family: str) -> str:
    """A network parameter's name in the family's public layout (kv still as k and v)."""
    for pattern, replacement in _LAYOUTS[family]:
        name = re.sub(pattern, replacement, name)
    return name


def _flyegle_heads(key: str) -> int:
    """The heads of the stage that a FlyEgle key (`stage1.block_list...`) belongs to."""
    return HEADS[int(key.removeprefix("stage")[0]) - 1]


def _split_kv(state: State) -> State:
    """FlyEgle's fused `kv` (head_dim, heads, 2) -> `k` and `v` (heads, head_dim)."""
    out: State = {}
    for key, value in state.items():
        if ".LMHSA.kv." not in key:
            out[key] = value
            continue
        fused = value.unflatten(0, (-1, _flyegle_heads(key), 2))
        for part, rows in zip("kv", fused.unbind(2), strict=True):
            out[key.replace(".kv.", f".{part}.")] = rows.transpose(0, 1).flatten(0, 1)
    return out


def _join_kv(state: State) -> State:
    """The inverse of `_split_kv`."""
    out: State = {}
    for key, value in state.items():
        if ".LMHSA.k." in key:
            pair = torch.stack([value, state[key.replace(".k.", ".v.")]], -1)
            by_head = pair.unflatten(0, (_flyegle_heads(key), -1)).transpose(0, 1)
            fused = by_head.movedim(-1, 2).flatten(0, 2)
            out[key.replace(".k.", ".kv.")] = fused
        elif ".LMHSA.v." not in key:
            out[key] = value
    return out


def save_torch(content: object, path: Path) -> None:
    """`torch.save`, but a full disk is an OSError that says so, and no file is half written."""
    buffer = io.BytesIO()  # torch's own writing does not say
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())


def read(path: Path) -> tuple[State, dict[str, str]]:
    """Read a weight file into (state dict, text metadata); never runs code from it.

    Accepts `.safetensors` and PyTorch files: an official training checkpoint (prefers
    `model_ema` to `model`), a dict with `state_dict`, or a bare state dict.

    Raises:
        InputError: missing, empty, damaged, or holding more than tensors and the
            `argparse.Namespace` that official checkpoints carry.
    """
    if not path.is_file():
        raise InputError(f"no weights at {path}: give --weights a file, 'demo' or 'random'")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: copy or download the weights again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _clean(_find_state(_read_pickle(path), path), path), {}


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return _clean(state, path), dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged or no safetensors file ({error}): copy it again"
        ) from error


def _read_pickle(path: Path) -> object:
    try:
        _refuse_compressed(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch raises many kinds for damaged and for unsafe files
        text = str(error)
        if "weights_only" in text or "Unsupported" in text:
            raise InputError(
                f"{path} holds Python objects that could run code, or is damaged: "
                "save its state dict alone (torch.save(model.state_dict(), ...))"
            ) from error
        raise InputError(
            f"{path} is damaged or no PyTorch file: copy or download it again"
        ) from error


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores its archives as they are; compressed, a small file could fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > path.stat().st_size:
        raise InputError(
            f"{path} claims to hold {claimed:,} bytes in a file of {path.stat().st_size:,}: "
            "save the state dict again with torch.save"
        )


def _find_state(content: object, path: Path) -> Mapping:
    if isinstance(content, Mapping):
        for name in ("model_ema", "model", "state_dict"):
            if isinstance(content.get(name), Mapping):
                return content[name]
        if any(isinstance(value, Tensor) for value in content.values()):
            return content
    raise InputError(f"{path} holds no state dict: expected 'model', 'state_dict' or bare tensors")


def _clean(state: Mapping, path: Path) -> State:
    """Drop `module.` prefixes, cast to float32; refuse what is no finite float tensor."""
    out: State = {}
    room = path.stat().st_size
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: entry '{key}' is no tensor: save the state dict alone")
        name = key.removeprefix("module.")
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise InputError(f"{path}: '{name}' has no plain values: save it dense, from the CPU")
        # An expanded tensor, one number standing for any many, would fill the memory below.
        room -= value.numel() * value.element_size()
        if room < 0:
            raise InputError(f"{path}: '{name}' is larger than the file: save its clone()")
        if name.endswith("num_batches_tracked"):
            out[name] = value.to(torch.int64)
            continue
        if value.dtype not in _DTYPES:
            raise InputError(f"{path}: '{name}' has dtype {value.dtype}, expected float16 to 64")
        out[name] = value.float()
        if not bool(torch.isfinite(out[name]).all()):
            raise InputError(f"{path}: '{name}' holds NaN or Inf: these weights are broken")
    return out


def detect_family(state: State) -> Family:
    """The family whose marker key the state dict holds."""
    for name, marker in _MARKERS.items():
        if marker in state and state[marker].ndim == 4:
            return FAMILIES[name]
    raise InputError(
        "these are no CMT weights: neither the official layout ('patch_embed_a.proj.weight') "
        "nor FlyEgle's ('pool1.patch_aggregation.weight')"
    )


def _length(state: State, key: str) -> int | None:
    """The first dimension of an entry, None where it is missing or a scalar."""
    return state[key].shape[0] if key in state and state[key].ndim else None


def detect_variant(state: State, family: Family) -> str:
    """The variant whose stage widths and stem match."""
    official = family.name == "official"
    keys = [
        f"patch_embed_{letter}.proj.weight" if official else f"pool{i + 1}.patch_aggregation.weight"
        for i, letter in enumerate(_STAGE_LETTERS)
    ]
    dims = tuple(_length(state, key) for key in keys)
    for name, variant in VARIANTS.items():
        if variant.dims == dims:
            return name
    raise InputError(f"no CMT variant has stage widths {dims}: are these CMT weights?")


def detect_size(state: State, family: Family) -> int:
    """The square input side, in pixels, that the position tables were trained at."""
    if family.block_position:
        key = "stage1.block_list.0.LMHSA.position_embeeding"
        length = _length(state, key)
        side = None if length is None else (length + 1) / 2
    else:
        key = "relative_pos_a"
        side = math.sqrt(state[key].shape[1]) if key in state and state[key].ndim == 3 else None
    if side is None or side != int(side):
        raise InputError(f"cannot tell the trained input size: position table '{key}' is unusable")
    return int(side) * STRIDES[0]


def detect_classes(state: State, family: Family) -> int:
    """The width of the classifier."""
    key = "classifier.weight" if family.pool_first else "head.weight"
    if key not in state or state[key].ndim != 2:
        raise InputError(f"'{key}' is missing: these weights have no classifier")
    return state[key].shape[0]


def _check_keys(expected: State, found: State, family: Family) -> None:
    """Raise InputError that lists the first missing, extra and misshapen keys."""
    problems = []
    for label, keys in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
    ):
        # Counters of training steps do not matter here and are often stripped.
        names = sorted(key for key in keys if not key.endswith("num_batches_tracked"))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{label} {', '.join(names[:3])}{more}")
    shared = sorted(expected.keys() & found.keys())
    misshapen = [key for key in shared if expected[key].shape != found[key].shape]
    # A missing or unexpected key says more than the shapes that it may have shifted.
    if misshapen and not problems:
        key = misshapen[0]
        problems.append(
            f"'{key}' is {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
        )
    if problems:
        raise InputError(f"weights do not fit the {family.name} family: {'; '.join(problems)}")


def load_state(model: CMT, state: State, trained_size: int) -> None:
    """Load a public-layout state dict, resizing position tables where sizes differ."""
    if model.head is None:
        state = {key: value for key, value in state.items() if not key.startswith(_HEAD_KEYS)}
    trained = parse_size(trained_size)
    with torch.device("meta"):
        expected = CMT(model.variant, model.family, trained, model.num_classes, model.head is None)
    _check_keys(to_public_layout(expected), state, model.family)
    if model.family == FLYEGLE:
        state = _split_kv(state)
    own = {}
    for name in model.state_dict():
        key = layout_name(name, model.family.name)
        if ".positions." in name:
            own[name] = _resize_table(state[key], name, trained, model)
        elif key in state:  # counters of training steps may be missing
            own[name] = state[key]
    model.load_state_dict(own, strict=False)


def _resize_table(table: Tensor, name: str, trained: tuple[int, int], model: CMT) -> Tensor:
    """The position table of parameter `name`, fitted to the model's input size."""
    stage = int(name.split(".")[1])
    stride = STRIDES[stage]
    new = (model.img_size[0] // stride, model.img_size[1] // stride)
    if model.family.block_position:
        return resize_relative_table(table, new)
    old = (trained[0] // stride, trained[1] // stride)
    return resize_stage_table(table, old, new, REDUCTIONS[stage])


def to_public_layout(model: CMT) -> State:
    """The model's weights under its family's public names, as a checkpoint stores them."""
    state = {
        layout_name(name, model.family.name): value for name, value in model.state_dict().items()
    }
    return _join_kv(state) if model.family == FLYEGLE else state


def load_model(
    variant: str,
    weights: str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    *,
    family: str | None = None,
    features: bool = False,
) -> CMT:
    """A CMT in evaluation mode, with its checkpoint's family, classes and size found for you.

    Args:
        variant: ti, xs, s or b.
        weights: a checkpoint file (see `read`); None keeps the random initialisation.
        img_size: input side, or (height, width), in pixels, multiples of 32. By default the
            size the weights were trained at, else the variant's own. Position tables are
            resized bicubically (`cmt.position`).
        num_classes: must match the weights where both are given; 1000 without weights.
        family: 'official' (default without weights) or 'flyegle'; must match the weights.
        features: return the four stage maps (strides 4, 8, 16, 32) in place of logits.

    Raises:
        InputError: unknown variant or size, unreadable weights, weights that do not fit.
    """
    get_variant(variant)
    if img_size is not None:
        parse_size(img_size)
    if weights is None:
        classes = 1000 if num_classes is None else num_classes
        return build(variant, family or "official", img_size, classes, features).eval()
    state, metadata = read(Path(weights))
    found_family = detect_family(state)
    found_variant = detect_variant(state, found_family)
    if found_variant != variant:
        raise InputError(
            f"{weights} holds CMT-{found_variant} weights: use --variant {found_variant}"
        )
    if family not in (None, found_family.name):
        raise InputError(f"{weights} is of the {found_family.name} family, not {family}")
    classes = 0 if features else detect_classes(state, found_family)
    if not features and num_classes not in (None, classes):
        raise InputError(f"{weights} has {classes} classes, not {num_classes}")
    trained_size = detect_size(state, found_family)
    model = build(variant, found_family.name, img_size or trained_size, classes, features)
    load_state(model, state, trained_size)
    model.metadata = metadata
    return model.eval()
