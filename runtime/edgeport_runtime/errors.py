"""Every error that edgeport raises on purpose.

    EdgeportError
    ├── BundleError          a bundle cannot be used as it is
    │   ├── FormatError      its manifest is malformed or of a newer format
    │   └── AlteredError     a file differs from what the manifest says
    ├── ContractError        a contract contradicts itself
    ├── ImageError           what was given as an image is not one, or does not fit the contract
    ├── InputError           an array, an option or a path does not fit
    ├── DeviceError          the device asked for cannot run the model here
    └── BusyError            a batcher did not answer a request
        ├── QueueFullError   as many requests wait as may
        ├── DeadlineError    it waited longer than it may
        └── ClosedError      the batcher was closed

The host side adds its own branches where they belong.
Each message says what was expected, what came, and what to do.
"""


class EdgeportError(Exception):
    """The root: catch this to catch everything that edgeport raises on purpose."""


class BundleError(EdgeportError):
    """A bundle is missing, incomplete, or cannot be loaded."""


class FormatError(BundleError):
    """A manifest is malformed, or written in a format this version cannot read."""


class AlteredError(BundleError):
    """A file of the bundle does not have the content that its manifest promises."""


class ContractError(EdgeportError):
    """A contract contradicts itself; the message lists every fault at once."""


class ImageError(EdgeportError):
    """An image cannot be decoded, or is outside the sizes that the model promises."""


class InputError(EdgeportError):
    """An argument has the wrong type, shape, dtype or value."""


class DeviceError(EdgeportError):
    """The device that was asked for cannot run the model on this machine."""


class BusyError(EdgeportError):
    """A batcher did not answer a request; the image may be good, and the request may be made again."""


class QueueFullError(BusyError):
    """As many requests wait as `max_queue` allows."""


class DeadlineError(BusyError):
    """A request had not begun to run when its deadline passed."""


class ClosedError(BusyError):
    """The batcher was closed, or its process is ending."""


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, or its type: messages of other libraries may be empty or fill screens.

    Of the system's errors the reason alone, because whoever tells it names the file.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
