"""The error tree, and the exit code of each branch.

    PneumoniaError               1  anything that has no better place
    ├── UsageError               2  the command line or the configuration is wrong
    │   └── ConfigError             an unknown key, a wrong type, a value out of range
    ├── BadInput                 3  what the user brought cannot be used
    │   ├── ImageError              not an image, damaged, or too large to decode safely
    │   ├── DataError               a data folder, an index or a label that does not fit
    │   └── BundleError             a bundle that is damaged, half written or of another schema
    ├── MissingPrerequisite      4  something has to be installed, built or started first
    │   ├── BundleNotFound          no bundle where one was expected
    │   ├── DependencyMissing       an optional package is not installed
    │   ├── DeviceUnavailable       the GPU that was asked for is not here
    │   ├── StorageError            a disk that is full, or a place that may not be written
    │   ├── PortTaken               another process listens on the port
    │   ├── SourceUnavailable       a download has no credentials, is refused, does not answer or was cut off
    │   └── ServerUnavailable       no answer, or no longer an answer, from the server
    ├── NoAnswer                    the model has no answer for an image: logits that are not finite
    ├── Refused                  5  a check said no
    │   ├── GateRefused             the model is not good enough to promote
    │   ├── DeployRefused           the served canary did not pass its checks
    │   └── ParityRefused           two forms of one model do not agree
    └── StepFailed                  a pipeline step failed; exits as the step did

Every message says what was received, what was expected and what to do next.
The command line prints the message alone, without a traceback, and exits with `exit_code`.
"""

from __future__ import annotations


class PneumoniaError(Exception):
    """Base of every error this library raises on purpose."""

    exit_code = 1


class UsageError(PneumoniaError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """An unknown key, a wrong type or a value out of range."""


class BadInput(PneumoniaError):
    """What the user brought cannot be used."""

    exit_code = 3


class ImageError(BadInput):
    """Not an image, damaged, or too large to decode safely."""


class DataError(BadInput):
    """A data folder, an index or a label that does not fit."""


class BundleError(BadInput):
    """A bundle that is damaged, half written or of another schema."""


class MissingPrerequisite(PneumoniaError):
    """Something has to be installed, built or started first; the message names the command."""

    exit_code = 4


class BundleNotFound(MissingPrerequisite):
    """No bundle where one was expected."""


class DependencyMissing(MissingPrerequisite):
    """An optional package is not installed."""


class DeviceUnavailable(MissingPrerequisite):
    """The GPU that was asked for is not here."""


class StorageError(MissingPrerequisite):
    """A disk that is full, or a place that may not be written."""


class PortTaken(MissingPrerequisite):
    """Another process listens on the port."""


class SourceUnavailable(MissingPrerequisite):
    """A download has no credentials, is refused, does not answer or was cut off.

    transient: the same request may be answered later.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        self.transient = transient
        super().__init__(message)


class ServerUnavailable(MissingPrerequisite):
    """No answer, or no longer an answer, from the server.

    transient: the same request may be answered later. busy: a server is there and takes no more now. failed: a server
    is there and failed at this request.
    """

    def __init__(self, message: str, transient: bool = True, busy: bool = False, failed: bool = False) -> None:
        self.transient = transient
        self.busy = busy
        self.failed = failed
        super().__init__(message)


class NoAnswer(PneumoniaError):
    """The model has no answer for an image: its logits are not finite numbers."""


class Refused(PneumoniaError):
    """A check said no."""

    exit_code = 5


class GateRefused(Refused):
    """The model is not good enough to promote. `reasons` lists every failed check."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = list(reasons)
        super().__init__("the gate refused this model: " + "; ".join(self.reasons))


class DeployRefused(Refused):
    """The served canary did not pass its checks and was removed. `reasons` lists every failed one."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = list(reasons)
        super().__init__("the canary was refused and removed: " + "; ".join(self.reasons))


class ParityRefused(Refused):
    """Two forms of one model do not agree on the same images."""


class StepFailed(PneumoniaError):
    """A pipeline step failed. `step` names it; the exit code is the step's own."""

    def __init__(self, step: str, reason: str, exit_code: int) -> None:
        self.step = step
        self.exit_code = exit_code
        super().__init__(f"step {step}: {reason}")
