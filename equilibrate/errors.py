"""Every error that a user can cause, as one tree.

    EquilibrateError
    |- ConfigError            a key, its value and the rule it breaks            exit 2
    |- DataError              file:line, the value and the rule                  exit 3
    |- ResourceError          what the cluster lacks, or what did not answer     exit 4
    |  |- WorkerLostError     a worker died and the caller may start it again
    |  |  |- KilledForMemoryError, InputLostError
    |  |- DiskError           what a disk refuses
    |  |- OutOfMemoryError    what a worker could not allocate, and what would take less
    |- NumericsError          non-finite numbers, or two parts that disagree     exit 5
       |- ParityError         generator and learner give different log-probs

Constructors take one message and nothing else: an exception with its own arguments does not survive
Ray's pickling and would arrive as a type that no `except` clause matches.
"""


class EquilibrateError(Exception):
    """Base of all errors above; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(EquilibrateError, ValueError):
    exit_code = 2


class DataError(EquilibrateError, ValueError):
    exit_code = 3


class ResourceError(EquilibrateError, RuntimeError):
    exit_code = 4


class WorkerLostError(ResourceError):
    """A worker process is gone; its group can be rebuilt and the work done again."""


class KilledForMemoryError(WorkerLostError):
    """Ray ended a worker because its machine ran out of memory, for whatever reason."""


class InputLostError(WorkerLostError):
    """What a healthy worker was to read is gone with the machine that held it: the policy's weights
    with that of the learner."""


class DiskError(ResourceError):
    """A disk is full, or closed to this user."""


class OutOfMemoryError(ResourceError):
    """A worker, still alive, was refused memory."""


class NumericsError(EquilibrateError, ArithmeticError):
    exit_code = 5


class ParityError(NumericsError):
    """Generator and learner disagree on log-probs of the same tokens: the weight sync is broken."""


EXIT_STOPPED = 143
"""Exit code after SIGTERM: the run was saved and can be resumed."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused, by Python, by torch or by one of ours."""
    # By name: torch need not be here. Its CPU allocator raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
