"""Ranks: how a process finds its own, and what real processes under torchrun deliver together, stopped and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fastbalance as fb
from fastbalance.errors import ArgumentError
from fastbalance.ranks import found_ranks, given_ranks

from .regrouped import write

WORKER = Path(__file__).with_name("ranks_worker.py")
LABELS = (np.arange(3000) % 11 == 0).astype(int)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data", LABELS, group_rows=100)
    return tmp_path


def torchrun(ranks, job, folder, options=None):
    """Start real processes; they meet on a free port of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"GLOO_SOCKET_IFNAME": "lo"} if os.name == "posix" else {})
    return subprocess.Popen(
        [*command, str(WORKER), job, str(folder), json.dumps(options or {})],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def reports(folder, name, ranks):
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(ranks)]


def alone(folder, batch_size=60, epochs=1, state=None):
    """The rows of each batch of one process, sorted, by epoch and batch."""
    loader = fb.BalancedLoader(folder / "data", "y", batch_size, extras=("row",), device="cpu")
    if state:
        loader.load_state_dict(state)
    numbered = (((epoch, k), batch) for epoch in range(epochs) for k, batch in enumerate(loader))
    return {at: sorted(batch["row"].tolist()) for at, batch in numbered}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_processes_of_torchrun_find_their_ranks(folder, ranks):
    """From the environment before there is a process group, and from that afterwards."""
    finish(torchrun(ranks, "find", folder))
    wanted = list(alone(folder).values())
    for way in zip(*reports(folder, "find", ranks), strict=True):
        shares = list(zip(*way, strict=True))
        assert [sorted(row for share in batch for row in share) for batch in shares] == wanted


@pytest.mark.slow
def test_tensor_parallel_peers_get_the_same_batch(folder):
    finish(torchrun(4, "mesh", folder))
    found = reports(folder, "mesh", 4)
    wanted = list(alone(folder).values())
    by_rank = {dp: [each["rows"][0] for each in found if each["dp"] == dp] for dp in (0, 1)}
    assert by_rank[0][0] == by_rank[0][1] != by_rank[1][0] == by_rank[1][1]
    halves = zip(by_rank[0][0], by_rank[1][0], strict=True)
    assert [sorted(first + second) for first, second in halves] == wanted
    quarters = zip(*(each["rows"][1] for each in found), strict=True)
    assert [sorted(row for share in batch for row in share) for batch in quarters] == wanted


@pytest.mark.slow
def test_ranks_share_a_scan_of_labels(folder):
    finish(torchrun(3, "scan", folder))
    data = fb.Dataset.open(folder / "data", "y")
    found = reports(folder, "scan", 3)
    assert sorted(group for each in found for group in each["scanned"]) == list(range(len(data.groups)))
    assert max(len(each["scanned"]) for each in found) == 10
    for rank, each in enumerate(found):
        assert (each["counts"], each["fingerprint"]) == (data.class_counts.tolist(), data.fingerprint)
        assert each["other files"] == (
            f"data: got other groups on rank {1 if rank == 0 else 0} than on rank {rank}; "
            "allowed: the same files on all ranks."
        )
        assert each["damaged"] == "this one is damaged"


def kill_in(process, folder, run, rank, position):
    """Kill one rank for good once the state has come to a position; torchrun ends the others."""
    deadline, state = time.monotonic() + 120, folder / "state.json"
    while not state.exists() or place(json.loads(state.read_text())) < position:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)
    os.kill(int((folder / f"{run}.{rank}.pid").read_text()), signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    process.stdout.close()


def place(state):
    return state["epoch"], state["batch"]


def logged(folder, run, ranks):
    """What the ranks of a run delivered, line by line; a line that a kill cut is left out."""
    for rank in range(ranks):
        for line in (folder / f"{run}.{rank}.log").read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                epoch, number, rows = json.loads(line)
                yield (epoch, number), rows


@pytest.mark.slow
@pytest.mark.parametrize("memory", [None, 480_000], ids=["resident", "streamed"])
def test_a_killed_run_goes_on_with_other_numbers_of_ranks(tmp_path, memory):
    """2 ranks, killed; 3 ranks, killed; 1 rank: every batch of three epochs is delivered as planned."""
    folder = tmp_path
    write(folder / "data", np.tile(LABELS, 10 if memory else 1), group_rows=100)
    begun, delivered, state = (0, 0), {}, folder / "state.json"
    batch_size = 600 if memory else 60
    for run, ranks, until in (("first", 2, (0, 20)), ("second", 3, (1, 25)), ("third", 1, None)):
        options = {"batch": batch_size, "epochs": 3, "run": run, "pause": 0.02 if until else 0}
        options |= {"memory": memory if ranks > 1 else 3 * memory, "lanes": 6} if memory else {}
        process = torchrun(ranks, "train", folder, options)
        if until:
            kill_in(process, folder, run, ranks - 1, until)
        else:
            finish(process)
        kept = json.loads(state.read_text())
        assert (kept["stream"] is not None) == (memory is not None)
        for batch, rows in logged(folder, run, ranks):
            assert batch >= begun
            if batch < place(kept):  # what came after the state is delivered again
                delivered.setdefault(batch, []).extend(rows)
        begun = place(kept)
    never_stopped = alone(folder, batch_size, epochs=3, state=kept | {"epoch": 0, "batch": 0})
    assert {batch: sorted(rows) for batch, rows in delivered.items()} == never_stopped


# ---------------------------------------------------------------------------------------------- one process


def test_no_ranks_anywhere(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert found_ranks() == (0, 1)
    monkeypatch.setenv("RANK", "3")  # something else sets it, too
    assert found_ranks() == (0, 1)


@pytest.mark.parametrize("values", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", ""), ("0", "0")])
def test_an_environment_that_is_wrong(monkeypatch, values):
    for name, value in zip(("RANK", "WORLD_SIZE"), values, strict=True):
        monkeypatch.setenv(name, value)
    loader = fb.BalancedLoader({"x": torch.arange(22), "y": torch.arange(22) % 2}, "y", 4, device="cpu")
    with pytest.raises(ArgumentError) as error:
        len(loader)
    assert str(error.value) == (
        f"environment: got RANK={values[0]}, WORLD_SIZE={values[1]}; allowed: a rank in [0, WORLD_SIZE). "
        "Unset them, or give rank and world_size."
    )


class Mesh:
    """What `DeviceMesh` shows of a process at (1, 2) of (2, 3)."""

    shape = (2, 3)

    def __init__(self, coordinate=(1, 2)):
        self._coordinate = coordinate

    def get_coordinate(self):
        return self._coordinate

    def size(self):
        return 6

    def __repr__(self):
        return "Mesh(2, 3)"


def test_a_mesh_counts_its_last_dimension_fastest():
    assert given_ranks(None, None, Mesh()) == (5, 6)
    assert given_ranks(None, None, Mesh((1, 0))) == (3, 6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 2, Mesh()), "mesh: got a mesh beside rank 0, world_size 2; allowed: one or the other."),
        (
            (None, None, "dp"),
            'mesh: got str; allowed: a DeviceMesh of the data-parallel dimensions, as device_mesh["dp"], or None.',
        ),
        (
            (None, None, Mesh(None)),
            "mesh: got Mesh(2, 3), which this process is not part of; allowed: a mesh of this process.",
        ),
    ],
)
def test_a_mesh_that_is_refused(arguments, text):
    with pytest.raises(ArgumentError) as error:
        given_ranks(*arguments)
    assert str(error.value) == text


def test_ranks_cannot_scan_without_a_process_group():
    with pytest.raises(ArgumentError) as error:
        fb.Dataset.open({"x": [1, 2], "y": [0, 1]}, "y", engine="ranks")
    assert str(error.value) == (
        "engine: got 'ranks', without a process group; allowed: \"local\", or "
        "torch.distributed.init_process_group before."
    )
