"""Errors that the user can fix, and how they are put in one line."""

import sys


def expected_errors() -> tuple[type[BaseException], ...]:
    """What bad input raises. Anything else is a fault of this package and keeps its traceback."""
    return (ValueError, OSError, ImportError, MemoryError, *_loaded_errors())


def _loaded_errors() -> list[type[BaseException]]:
    """Error classes of libraries, without importing a library that the failed command never needed."""
    classes = []
    if "torch" in sys.modules:
        classes.append(sys.modules["torch"].OutOfMemoryError)
    if "safetensors" in sys.modules:
        classes.append(sys.modules["safetensors"].SafetensorError)
    return [*classes, *connection_errors()]


def connection_errors() -> tuple[type[BaseException], ...]:
    """What broken connections raise: huggingface_hub speaks HTTP through one of these, depending on its version."""
    return tuple(sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules)


def describe_error(error: BaseException, memory: str = "choose a smaller size, or a machine with more memory") -> str:
    """What went wrong, in one line.

    Args:
        memory: what helps where memory is short.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {memory}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
