"""The ways a run can end badly; the command line turns them into exit statuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """An argument or input file is unusable; the message says what to do (exit status 2)."""


class MachineError(RuntimeError):
    """The machine failed, such as a killed process; trying again may help (exit status 3)."""


class GateError(RuntimeError):
    """A parity, accuracy or verification check failed (exit status 1)."""


EXPORT_PACKAGES = ("torch", "safetensors", "onnx", "onnxscript", "onnxsim", "onnxruntime")
"""What the `export` extra adds to the base install."""


@contextmanager
def export_extra() -> Iterator[None]:
    """Says of a package that is missing within what brings it; still a ModuleNotFoundError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in EXPORT_PACKAGES:
            raise
        advice = f"{error.name} is not installed: pip install 'cmt-export[export]'"
        raise ModuleNotFoundError(advice, name=error.name) from error


OUT_OF_MEMORY = (
    "allocate memory",  # the system, torch
    "bad_alloc",  # OpenVINO
    "bad allocation",  # ONNX Runtime
    "failed to map segment",  # the loader of libraries
    "Arena alloc failed",  # protobuf
    "can't start new thread",  # Python, without room for its stack
    "could not create a primitive",  # oneDNN in torch and OpenVINO
    "without exception set",  # CPython, of a call for whose frame it has no room (a SystemError)
    "without setting an exception",  # CPython, of native code that has no room
)
"""How those say it that do not raise a MemoryError."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False
