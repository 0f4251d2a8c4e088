"""Pieces and processes change how a step is computed, not what it computes."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from brains import brain_file

from ssn.core.errors import BackendError
from ssn.core.geometry import GridConfig
from ssn.train.checkpoint import load_checkpoint
from ssn.train.distributed import Ranks, choose_device
from ssn.train.encoder import EncoderConfig
from ssn.train.fit import fit
from ssn.train.network import ModelConfig
from ssn.train.presets import FitOptions

TINY = ModelConfig(
    encoder=EncoderConfig("tf_efficientnet_lite0", out_indices=(2,)),
    grid=GridConfig(plane=96, depth=96),  # small: a part of the brain
    width=None,
    blocks=2,
    whiten=True,
    plane_channels=8,
)
OPTIONS = FitOptions(epochs=2, batch=300, share=0.1, mix=2, noise=1.0, seed=5)

# What torchrun starts, once a process: every process runs the same call.
ONE_OF_SEVERAL = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from train.test_distributed import OPTIONS, TINY
from dataclasses import replace
from pathlib import Path
from ssn.train.distributed import processes
from ssn.train.fit import fit
torch.set_num_threads(1)
folder = Path({folder!r})
with processes("cpu") as ranks:
    assert ranks.count == 2
    fit(TINY, sorted(folder.glob("*.nii.gz")), folder / "two", replace(OPTIONS, loss={loss!r}),
        cache=folder / "cache", weights="none", ranks=ranks)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(2):
        brain_file(folder / f"{seed}.nii.gz", (6.0, 6.0, 6.0), lesion=False, seed=seed)
    return folder


def weights(checkpoint):
    return load_checkpoint(checkpoint).flow.state_dict()


def one_process(folder, name, options, **how):
    scans = sorted(folder.glob("*.nii.gz"))
    fit(TINY, scans, folder / name, options, cache=folder / "cache", weights="none", **how)
    return weights(folder / name)


def assert_close(one, other):
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", ["spp", "triplet"])
def test_a_step_in_pieces_is_the_step_in_one(folder, loss):
    options = replace(OPTIONS, loss=loss)
    whole = one_process(folder, f"whole-{loss}", options)
    pieces = one_process(folder, f"pieces-{loss}", options, accumulate=3)
    assert_close(whole, pieces)
    untrained = one_process(folder, f"short-{loss}", replace(options, epochs=1))
    moved = max(float((whole[name] - untrained[name]).abs().max()) for name in whole)
    assert moved > 1e-3, "the weights do move, so equality means something"


def test_a_step_may_have_fewer_locations_than_pieces(folder):
    options = replace(OPTIONS, loss="none", batch=2, epochs=1, share=0.001)
    assert_close(one_process(folder, "few", options), one_process(folder, "few-in-pieces", options, accumulate=5))


def test_two_processes_train_what_one_does(folder):
    """Two processes over gloo; takes a few seconds, for each imports torch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ONE_OF_SEVERAL.format(tests=str(Path(__file__).parents[1]), folder=str(folder), loss="spp")
    environment = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            ["nice", sys.executable, "-c", script],
            env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert_close(one_process(folder, "one", OPTIONS), weights(folder / "two"))


def test_shares_are_all_of_the_whole_in_order():
    shares = [range(10)[Ranks(rank, 3).share(10)] for rank in range(3)]
    assert [index for share in shares for index in share] == list(range(10))


def test_asking_for_a_gpu_where_there_is_none_is_one_clear_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match="--device cuda: torch finds no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
