"""The ways a run can end badly; the command line turns them into exit statuses."""


class InputError(ValueError):
    """An argument or input file is unusable; the message says what to do (exit status 2)."""


class MachineError(RuntimeError):
    """The machine failed, such as a killed process; trying again may help (exit status 3)."""


class GateError(RuntimeError):
    """A parity, accuracy or verification check failed (exit status 1)."""


OUT_OF_MEMORY = ("allocate memory", "bad_alloc", "bad allocation", "failed to map segment")
"""How the system and torch, OpenVINO, ONNX Runtime, and the loader of libraries say it."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False
