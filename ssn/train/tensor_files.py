"""Named tensors in safetensors files, several of which may belong together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssn.core.atomic import Held, atomic_path
from ssn.core.errors import DataError

_OF = "of"  # metadata: the step of training that a file was written after


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, of: str | None = None, held: Held | None = None) -> None:
    """Write tensors over an older file; `held` as for `atomic_path`.

    Parameters
    ----------
    of : step of training that they are from

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path, overwrite=True, held=held) as temporary:
        try:
            save_file(plain, temporary, None if of is None else {_OF: of})
        except SafetensorError as error:  # its own for a full disk, too
            raise OSError(str(error)) from error
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # it makes files that nobody else can read


def refuse_other_step(path: Path, of: str) -> None:
    """Raise DataError if a file says that it is from another step; one that says nothing is taken.

    Raises
    ------
    OSError, SafetensorError
        If it cannot be read.
    """
    with safe_open(path, "pt") as stored:
        said = (stored.metadata() or {}).get(_OF, of)
    if said != of:
        raise DataError(
            f"{path}: is from {said} and the record beside it from {of}, because writing them was interrupted; train "
            "again, without --resume"
        )
