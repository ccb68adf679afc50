"""The result is whole or absent: what is refused, and how an unfinished run goes on, after a kill too."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastbalance import workfolder
from fastbalance.dataset import Dataset
from fastbalance.errors import LabelError, SourceError, StateError
from fastbalance.resharding import INDEX_NAME, reshard
from fastbalance.source import open_source
from tests.regrouped import Interrupt, assert_regrouped, begin, digests, done_before, make, refused, skewed, write


@pytest.fixture
def labels():
    return skewed()


@pytest.fixture
def data(tmp_path, labels):
    return write(tmp_path / "data", labels)


class TestRefused:
    def test_labels(self, data, tmp_path):
        assert "no column 'w'" in refused(data, tmp_path / "out", "w", kind=LabelError)
        assert "label: got ()" in refused(data, tmp_path / "out", kind=LabelError)
        assert sorted(os.listdir(tmp_path)) == ["data"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"format": "csv"}, 'format: got \'csv\'; allowed: "parquet" or "ipc".'),
            ({"engine": "dask"}, 'engine: got \'dask\'; allowed: "local" or "ray".'),
            ({"seed": -1}, "seed: got -1; allowed: an integer in [0, 2^64)."),
            ({"workers": 0}, "workers: got 0; allowed: an integer in [1, 65,536)."),
            ({"group_rows": 0}, "group_rows: got 0; allowed: an integer in [1, 2^31)."),
            ({"memory": "1GB"}, 'memory: got \'1GB\'; allowed: bytes as an integer > 0, or as "512MiB" or "4GiB".'),
            ({"shard_bytes": 0}, 'shard_bytes: got 0; allowed: bytes as an integer > 0, or as "512MiB" or "4GiB".'),
            ({"memory": True}, "memory: got True"),
        ],
    )
    def test_arguments(self, options, message, tmp_path):
        assert refused("never opened", tmp_path / "out", "y", **options).startswith(message)

    def test_memory_that_no_group_fits(self, data, tmp_path):
        message = refused(data, tmp_path / "out", "y", memory=1000, group_rows=100)
        assert message == (  # 8 + 8 + 4 bytes, 3 of validity, and 4 of the place
            "memory: got 1,000 bytes; allowed: at least 73,125. "
            "A group of the source has up to 24,375 bytes, one to write 2,437."
        )

    def test_a_destination_that_exists(self, data, tmp_path):
        (tmp_path / "out").mkdir()
        message = refused(data, tmp_path / "out", "y")
        assert message == (
            f"destination '{tmp_path}/out': got a path that exists; allowed: one that does not yet. "
            "Give another path, or pass overwrite=True (--overwrite)."
        )

    def test_overwriting(self, data, labels, tmp_path):
        out = tmp_path / "out"
        reshard(data, out, "y", group_rows=500, shard_bytes="50KiB")
        reshard(data, out, "y", overwrite=True)
        assert [path.name for path in sorted(out.iterdir())] == [INDEX_NAME, "shard-00000.parquet"]
        assert_regrouped(out, {label: np.flatnonzero(labels == label) for label in (0, 1, 7)})
        (out / "mine.txt").touch()
        message = refused(data, out, "y", overwrite=True)
        assert "got a path with other files to overwrite; allowed: an empty directory, or one that reshard" in message
        assert sorted(os.listdir(tmp_path)) == ["data", "out"]
        (tmp_path / "file").touch()
        assert "other files to overwrite" in refused(data, tmp_path / "file", "y", overwrite=True)

    def test_a_destination_that_is_the_source_or_in_it(self, data, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for source, destination in [
            (data, data / "out"),
            ([str(data)], data / "deep" / "out"),
            (f"file://{data}", data / "out"),
            ("data", "data"),
            (f"{data}/**/*.parquet", data / "deep"),
            (f"{tmp_path}/*", tmp_path / "out"),
        ]:
            assert "got a path inside the source" in refused(source, destination, "y", overwrite=True)
        reshard("data/*.parquet", "data/out", "y")  # this glob does not find the result
        files = [str(path) for path in sorted((data / "out").glob("*.parquet"))]
        message = refused(files, data / "out", "y", overwrite=True)
        assert f"got a directory that holds '{files[0]}' of the source; allowed: one that does not" in message

    def test_a_disk_without_room(self, data, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(workfolder.shutil, "disk_usage", lambda _: usage)
        message = refused(data, tmp_path / "out", "y")
        assert message.startswith(f"destination, {tmp_path}: got 1,000 bytes of free space; allowed: about ")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("stage", ["chunk", "shard"])
    def test_a_write_that_fails_can_be_repeated(self, stage, data, tmp_path):
        options = {"group_rows": 3000, "memory": "1MiB", "shard_bytes": "10MiB"}
        reshard(data, tmp_path / "want", "y", **options)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if stage == "shard":
            work = begin(data, tmp_path / "out", options, stop_at="writing")
            assert len(list((work / "chunks").iterdir())) > 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # writing more is an error of the system
        try:
            message = refused(data, tmp_path / "out", "y", **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        folder = "chunks" if stage == "chunk" else "data"
        assert message.startswith(f"destination, {tmp_path}/.out.reshard/{folder}/")
        assert "File too large" in message
        assert message.endswith("Mend that and run it again: what is finished is kept.")
        assert not (tmp_path / "out").exists()
        assert not list((tmp_path / ".out.reshard").rglob("*.tmp"))
        reshard(data, tmp_path / "out", "y", **options)
        assert digests(tmp_path / "out") == digests(tmp_path / "want")

    def test_no_permission(self, data, tmp_path):
        (tmp_path / "file").touch()
        message = refused(data, tmp_path / "file" / "out", "y")
        assert message.startswith(f"destination, {tmp_path}/file/out: got [Errno 20] Not a directory")

    def test_labels_that_change(self, data, tmp_path):
        opened = Dataset.open(data, "y")
        table = pq.read_table(data / "1.parquet")
        with pa.ipc.new_file(tmp_path / "s.arrow", table.schema) as writer:
            writer.write_table(table)
        opened = Dataset.open(tmp_path / "s.arrow", "y")
        with pa.ipc.new_file(tmp_path / "s.arrow", table.schema) as writer:
            writer.write_table(table.set_column(1, "y", pa.array(np.arange(len(table)) % 2)))
        message = refused(opened, tmp_path / "out", kind=SourceError)
        assert message.startswith(f"{tmp_path}/s.arrow, groups [0, 8): got other labels; allowed: those of the scan")

    def test_a_damaged_page_names_shard_and_group(self, data, tmp_path):
        path = data / "1.parquet"
        column = pq.read_metadata(path).row_group(3).column(2)
        first = min(column.dictionary_page_offset or column.data_page_offset, column.data_page_offset)
        content = bytearray(path.read_bytes())
        content[first : first + 8] = bytes(8)  # of the page's header
        path.write_bytes(content)
        message = refused(data, tmp_path / "out", "y", group_rows=500, kind=SourceError)
        assert message.startswith(f"{path}, groups [3]: got ")


class TestResume:
    @pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
    @pytest.mark.parametrize(("stage", "folder"), [("scattering", "chunks"), ("writing", "data")])
    def test_after_a_kill(self, stage, folder, data, tmp_path):
        options = {"group_rows": 1500, "memory": "300KiB", "shard_bytes": "60KiB", "workers": 2}
        out, work = tmp_path / "out", tmp_path / ".out.reshard"
        reshard(data, tmp_path / "want", "y", **options)
        code = (
            "import sys, time; from fastbalance.resharding import reshard\n"
            f"slow = lambda stage, done, total: time.sleep(0.2 * (stage == {stage!r}))\n"
            f"reshard({str(data)!r}, {str(out)!r}, 'y', progress=slow, **{options!r})"
        )
        child = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 60
        while len(list((work / folder).glob("[!.]*"))) < 4 and time.monotonic() < deadline:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not out.exists()
        assert len(open_source(tmp_path).shards) == 3 + len(open_source(tmp_path / "want").shards), (
            "nothing half-written"
        )
        first = done_before(data, out, {**options, "workers": 1, "memory": "1MiB"})
        done, total = first[stage]
        assert 4 <= done < total
        assert digests(out) == digests(tmp_path / "want")
        assert sorted(os.listdir(tmp_path)) == ["data", "out", "want"]

    def test_other_arguments_or_data(self, data, tmp_path):
        work = begin(data, tmp_path / "out", {}, "writing")
        message = refused(data, tmp_path / "out", "y", kind=StateError, seed=1, format="ipc")
        assert message == (
            f"unfinished run '{work}': got format 'ipc', seed 1; allowed: format 'parquet', seed 0, as begun. Run it "
            "again as it was begun; or begin anew: overwrite=True (--overwrite), or remove the folder."
        )
        pq.write_table(make(100, [0, 1] * 50), data / "9.parquet")
        message = refused(data, tmp_path / "out", "y", kind=StateError)
        assert re.search(r"got source '[0-9a-f]{32}'; allowed: source '[0-9a-f]{32}', as begun", message)
        reshard(data, tmp_path / "out", "y", overwrite=True)
        assert open_source(tmp_path / "out").n_rows == 24_100

    def test_overwriting_goes_on_too(self, data, tmp_path):
        reshard(data, tmp_path / "out", "y")
        before = digests(tmp_path / "out")
        begin(data, tmp_path / "out", {"overwrite": True, "seed": 1}, "writing")
        assert digests(tmp_path / "out") == before
        assert done_before(data, tmp_path / "out", {"overwrite": True, "seed": 1})["scattering"] == (1, 1)
        assert digests(tmp_path / "out") != before

    def test_a_table_in_memory_begins_anew(self, tmp_path):
        table = make(100, [0, 1] * 50)
        begin(table, tmp_path / "out", {}, "writing")
        assert done_before(table, tmp_path / "out", {})["scattering"] == (0, 1)

    def test_after_the_machine_went_down(self, data, tmp_path):
        work = begin(data, tmp_path / "out", {}, "writing")
        manifest = json.loads((work / "manifest.json").read_text())
        (work / "manifest.json").write_text(json.dumps({**manifest, "boot": "another"}))
        assert done_before(data, tmp_path / "out", {})["scattering"] == (0, 1)

    @pytest.mark.parametrize("step", ["rmtree", "rename"])
    def test_stopped_in_the_last_steps(self, step, data, tmp_path, monkeypatch):
        module = {"rmtree": shutil, "rename": os}[step]
        real, last = getattr(module, step), tmp_path / {"rmtree": ".out.reshard", "rename": ".out.reshard/data"}[step]

        def stop(path, *args, **options):
            if path == last:
                raise Interrupt
            return real(path, *args, **options)

        monkeypatch.setattr(module, step, stop)
        with pytest.raises(Interrupt):
            reshard(data, tmp_path / "out", "y")
        monkeypatch.undo()
        if step == "rename":
            assert done_before(data, tmp_path / "out", {})["writing"] == (1, 1)
        else:  # it was there already; what was left goes
            refused(data, tmp_path / "out", "y")
        assert sorted(os.listdir(tmp_path)) == ["data", "out"]
        assert open_source(tmp_path / "out").n_rows == 24_000

    def test_a_second_run_at_the_same_time(self, data, tmp_path):
        seen = []

        def progress(stage, done, total):
            if stage == "writing" and not seen:
                seen.append(refused(data, tmp_path / "out", "y", kind=StateError))

        reshard(data, tmp_path / "out", "y", progress=progress)
        assert "got a folder that another run is using; allowed: one run at a time for a destination" in seen[0]
