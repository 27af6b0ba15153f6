"""The ways a run can end badly; the command line turns them into exit statuses."""


class InputError(ValueError):
    """An argument or input file is unusable; the message says what to do (exit status 2)."""


class MachineError(RuntimeError):
    """The machine failed, such as a killed process; trying again may help (exit status 3)."""


class GateError(RuntimeError):
    """A parity, accuracy or verification check failed (exit status 1)."""
