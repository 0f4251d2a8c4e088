"""Digests of files are remembered for as long as nothing shows a change."""

import hashlib
import os
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


def test_a_file_of_the_same_size_or_of_the_same_time_is_read_anew(tmp_path, monkeypatch):
    def digest(folder, content, changed_ns):
        """Digest of a file in a folder, by a path that does not say which."""
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        path = Path("scan.nii")
        path.write_bytes(content)
        os.utime(path, ns=(changed_ns, changed_ns))
        return file_sha256(path)

    for folder, content, changed_ns in (("a", b"one", 5), ("a", b"two", 6), ("a", b"three", 6), ("b", b"seven", 6)):
        assert digest(folder, content, changed_ns) == hashlib.sha256(content).hexdigest()
