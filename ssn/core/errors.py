"""Errors that a user can cause: one clear line each, caught by the command line (exit code 1)."""


class SsnError(Exception):
    """A cause the user can mend. The message names the file, what is wrong, and what to do."""


class VolumeError(SsnError):
    """The input is not a usable brain volume."""


class BundleError(SsnError):
    """The model bundle is missing, incomplete, modified, or of another version."""


class OutputError(SsnError):
    """The output cannot be written, or would overwrite something."""


class DataError(SsnError):
    """A training or evaluation data set is not laid out as expected."""


class BackendError(SsnError):
    """The requested inference backend cannot run here."""


class MemoryLimitError(BackendError):
    """Not even the smallest batch fits into the memory limit."""


class ExportError(SsnError):
    """The exported graphs don't say what the trained networks say, or no engine can be made that does."""


class ResultsError(SsnError):
    """A file of measurements is missing, damaged, or lacks what was asked for."""


def first_line(error: Exception) -> str:
    """First line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def installing(extra: str) -> str:
    """Command that installs an optional part; ssn is on no package index, so it is run where its sources lie."""
    return f"pip install '.[{extra}]' in ssn's folder"
