"""Digests of files are remembered for as long as nothing shows a change."""

import hashlib
from pathlib import Path

from ssn.core.hashed_files import file_sha256


def test_a_file_is_read_once_and_again_when_it_was_changed(tmp_path, monkeypatch):
    path, opened, real = tmp_path / "scan.nii", [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened.append(self) or real(self, mode))
    for content in (b"first", b"and second"):
        path.write_bytes(content)
        opened.clear()
        assert [file_sha256(path) for _ in range(3)] == [hashlib.sha256(content).hexdigest()] * 3
        assert opened == [path]
