"""The command line: its numbers, its JSON, and what wrong input gets."""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import fastbalance
from fastbalance import cli
from fastbalance.dataset import Dataset
from fastbalance.plan import make_plan

NO, YES, LATE = "no", "yes [b]late[/b]", "zurückgestellt"
COUNTS = {NO: 900, YES: 90, LATE: 10}


def invoke(*args):
    return CliRunner().invoke(cli.app, [str(arg) for arg in args], prog_name="fastbalance")


def output(*args):
    result = invoke(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def lines(*args):
    """What is printed, as lines of words."""
    return [line.split() for line in output(*args).splitlines()]


def document(*args):
    return json.loads(output(*args, "--json"))


def error(*args):
    """The message of a command that fails as it should."""
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("fastbalance: error: ")
    assert result.stderr.count("\n") == 1, "a message is one line, however long"
    return result.stderr.removeprefix("fastbalance: error: ").rstrip("\n")


@pytest.fixture
def table():
    labels = np.repeat(list(COUNTS), list(COUNTS.values()))
    np.random.default_rng(0).shuffle(labels)
    points = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(3000, dtype=np.float32)), 3)
    return pa.table({"x": points, "y": labels, "z": np.arange(1000) % 2 == 0, "k": np.arange(1000) % 7})


@pytest.fixture
def data(table, tmp_path):
    """A folder of two Parquet files, with groups of 250, 250, 100, 250 and 150 rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(table.slice(0, 600), folder / "a.parquet", row_group_size=250)
    pq.write_table(table.slice(600), folder / "b.parquet", row_group_size=250)
    return folder


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


class TestInspect:
    def test_tables(self, data):
        printed = lines("inspect", data, "--label", "y")
        assert ["rows", "1,000"] in printed
        assert ["shards", "2"] in printed
        assert ["groups", "5", "of", "100", "to", "250", "rows,", "median", "250"] in printed
        assert ["classes", "3", "of", "y"] in printed
        assert ["imbalance", "90.0", ":", "1,", "largest", "to", "smallest", "class"] in printed
        assert ["x", "fixed_size_list<element:", "float>[3]", "float32", "[3]"] in printed
        assert ["y", "string", "uint8", "[any]"] in printed
        assert ["k", "int64", "int64"] in printed
        assert ["no", "900", "90.0000%", "█" * 24] in printed
        assert [*YES.split(), "90", "9.0000%", "██▍"] in printed
        assert [LATE, "10", "1.0000%", "▎"] in printed

    def test_json(self, data):
        found = document("inspect", data, "--label", "y")
        files = [pq.ParquetFile(path).metadata for path in sorted(data.iterdir())]
        groups = [file.row_group(i) for file in files for i in range(file.num_row_groups)]
        n_bytes = sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))
        assert found == {
            "n_rows": 1000,
            "n_shards": 2,
            "n_groups": 5,
            "group_rows": {"min": 100, "median": 250, "max": 250},
            "bytes": n_bytes,
            "schema": [
                {"column": "x", "type": "fixed_size_list<element: float>[3]", "tensor": "float32 [3]"},
                {"column": "y", "type": "string", "tensor": "uint8 [any]"},
                {"column": "z", "type": "bool", "tensor": "bool"},
                {"column": "k", "type": "int64", "tensor": "int64"},
            ],
            "label": ["y"],
            "n_classes": 3,
            "imbalance": 90.0,
            "classes": [{"label": name, "rows": n, "share": n / 1000} for name, n in COUNTS.items()],
        }

    def test_files_globs_and_lists_are_one_data_set(self, data):
        ways = [[data], [f"{data}/*.parquet"], [f"file://{data}"], [data / "a.parquet", f"{data}/b.*"]]
        assert len({output("inspect", *paths, "--label", "y", "--json") for paths in ways}) == 1

    def test_a_class_of_two_columns(self, data):
        found = document("inspect", data, "--label", "y", "--label", "z")
        assert found["label"] == ["y", "z"]
        assert found["n_classes"] == 6
        assert [line["label"] for line in found["classes"][:2]] == [[NO, False], [NO, True]]
        assert sum(line["rows"] for line in found["classes"] if line["label"][0] == YES) == 90
        printed = output("inspect", data, "--label", "y", "--label", "z")
        assert f"('{YES}', True)" in printed

    def test_many_classes_show_both_ends(self, tmp_path):
        path = parquet(tmp_path / "many.parquet", y=np.repeat(np.arange(1, 31), np.arange(1, 31)))
        printed = lines("inspect", path, "--label", "y")
        start = printed.index(["class", "rows", "share"]) + 2
        shown = [line[0] for line in printed[start:]]
        assert printed[start + 10] == ["...", "10", "more"]
        assert shown == [str(y) for y in range(30, 20, -1)] + ["..."] + [str(y) for y in range(10, 0, -1)]
        assert len(document("inspect", path, "--label", "y")["classes"]) == 30

    @pytest.mark.parametrize(
        ("labels", "shown"),
        [
            ([True, False, True], [False, True]),
            ([3, -1, 3], [-1, 3]),
            ([datetime.date(2024, 5, 1), datetime.date(2024, 5, 2)], ["2024-05-01", "2024-05-02"]),
            ([b"a", b"b"], ["b'a'", "b'b'"]),
        ],
        ids=lambda value: str(value[0]),
    )
    def test_labels_in_json(self, labels, shown, tmp_path):
        found = document("inspect", parquet(tmp_path / "y.parquet", y=labels), "--label", "y")
        assert [line["label"] for line in found["classes"]] == shown

    def test_labels_that_would_disturb_a_terminal_are_quoted(self, tmp_path):
        path = parquet(tmp_path / "y.parquet", y=["", "a\nb", "\x1b[31mred"])
        printed = output("inspect", path, "--label", "y")
        assert "\x1b" not in printed
        for quoted in ("''", r"'a\nb'", r"'\x1b[31mred'"):
            assert f"\n{quoted} " in printed

    def test_arrow_file(self, table, tmp_path):
        with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=400)
        found = document("inspect", tmp_path, "--label", "y")
        assert (found["n_rows"], found["n_groups"]) == (1000, 3)
        assert found["group_rows"] == {"min": 200, "median": 400, "max": 400}
        assert found["bytes"] > 1000 * 12

    def test_max_classes(self, data):
        message = error("inspect", data, "--label", "k", "--max-classes", "6")
        assert message.startswith("label column 'k': got more than 6 classes; allowed: max_classes=6.")


class TestIndex:
    def test_is_written_and_read(self, data, tmp_path, monkeypatch):
        path = tmp_path / "y.index"
        printed = output("index", data, "--label", "y", "--output", path)
        assert printed == f"wrote {path}: rows 1,000, groups 5, classes 3\n"
        scanned = output("inspect", data, "--label", "y")
        monkeypatch.setattr("fastbalance.dataset.scan_labels", None)
        assert output("inspect", data, "--label", "y", "--index", path) == scanned

    def test_json(self, data, tmp_path):
        path = tmp_path / "y.index"
        found = document("index", data, "--label", "y", "--output", path)
        counts = {"n_rows": 1000, "n_groups": 5, "n_classes": 3}
        assert found == {"output": str(path), "bytes": path.stat().st_size, "label": ["y"], **counts}

    def test_damaged(self, data, tmp_path):
        path = tmp_path / "y.index"
        output("index", data, "--label", "y", "--output", path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert "does not match: the file is damaged" in error("plan", data, *PLAN, "--index", path)

    def test_of_another_label_or_other_data(self, data, tmp_path):
        path = tmp_path / "k.index"
        output("index", data, "--label", "k", "--output", path)
        assert "got an index of the label ['k']" in error("inspect", data, "--label", "y", "--index", path)
        other = data / "a.parquet"
        assert "shard 'b.parquet'" in error("inspect", other, "--label", "k", "--index", path)

    def test_cannot_be_written_or_read(self, data, tmp_path):
        path = tmp_path / "none" / "y.index"
        message = error("index", data, "--label", "y", "--output", path)
        assert message.endswith("allowed: a path in a directory that can be written to.")
        assert "No such file" in error("inspect", data, "--label", "y", "--index", path)


class TestReshard:
    def test_is_written_and_read(self, data, tmp_path):
        out = tmp_path / "out"
        printed = output("reshard", data, out, "--label", "y", "--group-rows", "300")
        assert printed == f"wrote {out}: rows 1,000, shards 1, groups 5, classes 3\n"
        found = document("inspect", out, "--label", "y", "--index", out / "_index.fastbalance")
        assert found["classes"] == document("inspect", data, "--label", "y")["classes"]
        assert found["schema"] == document("inspect", data, "--label", "y")["schema"]

    def test_json_and_options(self, data, tmp_path):
        out = tmp_path / "out"
        sizes = ("--group-rows", 50, "--shard-bytes", "4KiB", "--memory", "1MiB", "--workers", 1, "--seed", 3)
        args = ("reshard", data / "a.parquet", data / "b.parquet", out, "--label", "y", "--label", "z", *sizes)
        found = document(*args, "--format", "ipc")
        files = sorted(out.glob("*.arrow"))
        assert len(files) > 5
        assert found == {
            "output": str(out),
            "bytes": sum(path.stat().st_size for path in files),
            "label": ["y", "z"],
            "index": str(out / "_index.fastbalance"),
            "n_rows": 1000,
            "n_shards": len(files),
            "n_groups": 23,
            "n_classes": 6,
        }
        assert error(*args).startswith(f"destination '{out}': got a path that exists; allowed: one that does not yet.")
        assert output(*args, "--overwrite").startswith(f"wrote {out}: rows 1,000, shards ")
        assert not list(out.glob("*.arrow"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--memory", "1GB"], "memory: got '1GB'; allowed: bytes as an integer > 0, or as"),
            (["--memory", "100"], "memory: got 100 bytes; allowed: at least"),
            (["--shard-bytes", "0"], "shard_bytes: got '0'"),
            (["--format", "csv"], "Invalid value for '--format'"),
            (["--engine", "dask"], "Invalid value for '--engine'"),
        ],
    )
    def test_wrong_options(self, options, message, data, tmp_path):
        assert error("reshard", data, tmp_path / "out", "--label", "y", *options).startswith(message)

    def test_wrong_paths(self, data, tmp_path):
        assert "got a path inside the source" in error("reshard", data, data / "out", "--label", "y")
        assert "no column 'w'" in error("reshard", data, tmp_path / "out", "--label", "w")
        assert error("reshard", data, "--label", "y").startswith("Missing argument")
        assert sorted(os.listdir(tmp_path)) == ["data"]


PLAN = ("--label", "y", "--batch-size", "50")


class TestPlan:
    def test_tables(self, data):
        printed = output("plan", data, *PLAN, "--world-size", "2")
        expected = make_plan(list(COUNTS.values()), "uniform", None, 100, classes=list(COUNTS))
        assert printed.splitlines()[0] == str(expected).splitlines()[0]
        words = [line.split() for line in printed.splitlines()]
        for line in expected.table():
            assert " ".join(line).split() in words
        assert "1,000 rows in 10 batches of 100" in printed
        assert [LATE, "10", "1.0000%", "333", "33.3000%", "33.300", "100.00%", "1"] in words

    def test_json(self, data):
        balance = f'target:{{"{NO}": 3, "{YES}": 1, "{LATE}": 0}}'
        found = document("plan", data, *PLAN, "--epoch-rows", "200", "--balance", balance)
        assert found.pop("fingerprint")
        assert found.pop("balance").startswith("target({'no': 3,")
        classes = found.pop("classes")
        assert found == {
            "n_rows": 1000,
            "n_classes": 3,
            "epoch_rows": 200,
            "n_batches": 4,
            "global_batch_rows": 50,
            "tail_rows": 0,
        }
        assert [line["label"] for line in classes] == list(COUNTS)
        assert [line["quota"] for line in classes] == [150, 50, 0]
        assert [line["share_drawn"] for line in classes] == [0.75, 0.25, 0]
        assert [line["coverage"] for line in classes] == pytest.approx([150 / 900, 50 / 90, 0])
        assert [line["epochs_to_cover"] for line in classes] == [6, 2, None]

    @pytest.mark.parametrize(
        ("balance", "quotas"),
        [
            ("uniform", [334, 333, 333]),
            ("natural", [900, 90, 10]),
            ("sqrt", [703, 223, 74]),
            ("power:0", [334, 333, 333]),
            ("power:1", [900, 90, 10]),
            ("ratio:1", [334, 333, 333]),
            ("ratio:9", [474, 474, 53]),
        ],
    )
    def test_balances(self, balance, quotas, data):
        found = document("plan", data, *PLAN, "--balance", balance)
        assert [line["quota"] for line in found["classes"]] == pytest.approx(quotas, abs=1)

    @pytest.mark.parametrize(
        ("label", "target", "quotas"),
        [
            ("z", {"true": 3, "false": 1}, [250, 750]),
            ("z", {"True": 3, "False": 1}, [250, 750]),
            ("k", {str(k): float(k == 3) for k in range(7)}, [0, 0, 0, 1000, 0, 0, 0]),
        ],
    )
    def test_target_names_are_matched_to_labels(self, label, target, quotas, data):
        args = ("--label", label, "--batch-size", 50, "--balance", f"target:{json.dumps(target)}")
        assert [line["quota"] for line in document("plan", data, *args)["classes"]] == quotas

    @pytest.mark.parametrize(("asked", "epoch_rows"), [("over", 2700), ("under", 30), ("100", 100)])
    def test_epoch_rows(self, asked, epoch_rows, data):
        args = ("--label", "y", "--batch-size", "10", "--epoch-rows", asked)
        assert document("plan", data, *args)["epoch_rows"] == epoch_rows

    @pytest.mark.parametrize(("tail", "batches", "tail_rows"), [("keep", 4, 100), ("drop", 3, 0), ("pad", 4, 0)])
    def test_tail(self, tail, batches, tail_rows, data):
        args = ("--label", "y", "--batch-size", "300", "--balance", "natural", "--tail", tail)
        found = document("plan", data, *args)
        assert (found["n_batches"], found["tail_rows"]) == (batches, tail_rows)


class TestErrors:
    @pytest.mark.parametrize("command", [("inspect",), ("index", "--output", "i"), ("plan", "--batch-size", "2")])
    def test_of_the_data(self, command, data, tmp_path):
        name, *options = command

        def message(path, label="y"):
            return error(name, path, "--label", label, *options)

        assert "got no such file" in message(tmp_path / "none.parquet")
        assert message(data, "w").startswith("label: got no column 'w'; allowed: one of [")
        floats = parquet(tmp_path / "f.parquet", y=[0.5, 1.5])
        assert message(floats).startswith("label column 'y': got double; allowed: integers, bool")
        nulls = parquet(tmp_path / "n.parquet", y=["a", None, "b"])
        assert message(nulls).startswith("label column 'y': got 1 nulls, the first of them in ")
        one = parquet(tmp_path / "o.parquet", y=["[red]a"] * 3)
        assert "got one class, '[red]a'; allowed: two or more classes" in message(one)
        (tmp_path / "c.parquet").write_bytes((data / "a.parquet").read_bytes()[:-1000])
        assert "c.parquet: got " in message(tmp_path / "c.parquet")

    @pytest.mark.parametrize(
        "balance",
        ["even", "power:", "power:x", "power:inf", "ratio:0.5", "target:", "target:[1]", 'target:{"no": "x"}'],
    )
    def test_balance(self, balance):
        message = error("plan", "never opened", *PLAN, "--balance", balance)
        assert message.startswith(f"--balance: got {balance!r}; allowed: uniform, natural, sqrt, power:ALPHA")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--balance", 'target:{"nö": 1}'], "target shares: got shares for 'nö', which no row has"),
            (["--balance", 'target:{"no": 1}'], f"target shares: got no share for {YES!r}, {LATE!r}"),
            (["--batch-size", "2000"], "batch_size: got 2,000 rows in a global batch, but an epoch of 1,000"),
            (["--epoch-rows", "many"], 'epoch_rows: got \'many\'; allowed: None, "over", "under"'),
            (["--epoch-rows", "-5"], "epoch_rows: got '-5'"),
            (["--balance", "natural", "--batch-size", "3", "--world-size", "111"], 'tail: got "keep"'),
        ],
    )
    def test_plan(self, options, message, data):
        assert error("plan", data, *PLAN, *options).startswith(message)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["train"], "No such command 'train'"),
            (["inspect"], "Missing argument"),
            (["inspect", "data"], "Missing option '--label'"),
            (["plan", "data", "--label", "y", "--batch-size", "0"], "Invalid value for '--batch-size'"),
            (["plan", "data", *PLAN, "--tail", "cut"], "Invalid value for '--tail'"),
            (["inspect", "--colour"], "No such option"),
        ],
    )
    def test_usage(self, args, message):
        found = error(*args)
        assert found.startswith(message)
        command = "" if args == ["train"] else f" {args[0]}"
        assert found.endswith(f". Try 'fastbalance{command} --help'.")


class TestCommand:
    def test_help(self):
        assert output() == output("--help")
        for command in ("inspect", "index", "plan", "compare", "reshard", "demo"):
            assert command in output()
            assert f"fastbalance {command}" in output(command, "--help")

    def test_version(self):
        assert output("--version") == f"fastbalance {fastbalance.__version__}\n"

    def test_interrupt(self, data, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(Dataset, "open", interrupted)
        result = invoke("inspect", data, "--label", "y")
        assert (result.exit_code, result.stdout) == (130, "")
        assert "Traceback" not in result.stderr

    def test_demo(self, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setitem(sys.modules, "fastbalance.demo", SimpleNamespace(run=lambda *args: calls.append(args)))
        output("demo", "--output", tmp_path, "--seeds", "3", "--quick")
        assert calls == [(tmp_path, 3, True)]

    def test_demo_without_its_packages(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "fastbalance.demo", raising=False)
        monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
        assert "pip install 'fastbalance[demo]'" in error("demo")


def run(*args, **options):
    command = [sys.executable, "-m", "fastbalance", *map(str, args)]
    pipes = {} if "stdout" in options else {"capture_output": True}
    return subprocess.run(command, timeout=120, check=False, **pipes, **options)


def in_a_terminal(*args):
    """What a terminal of 72 columns gets, without its control sequences."""
    import pty

    ours, theirs = pty.openpty()
    run(*args, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "72", "TERM": "xterm", "PYTHONUTF8": "1"})
    os.close(theirs)
    shown = b""
    with suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # the end of a terminal is an error
        while part := terminal.read(4096):
            shown += part
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


class TestProcess:
    def test_pipe_gets_whole_lines(self, tmp_path):
        label = "ü[i]" * 50
        path = parquet(tmp_path / "y.parquet", y=[label, "b"])
        done = run("inspect", path, "--label", "y", env={**os.environ, "COLUMNS": "40", "PYTHONUTF8": "1"})
        assert (done.returncode, done.stderr) == (0, b"")
        assert f"\n{label} " in done.stdout.decode()

    def test_stdout_without_umlauts(self, data):
        done = run("inspect", data, "--label", "y", env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"zur?ckgestellt" in done.stdout

    def test_error(self, tmp_path):
        done = run("inspect", tmp_path / "[x].parquet", "--label", "y", env={**os.environ, "COLUMNS": "40"})
        assert (done.returncode, done.stdout) == (2, b"")
        message = done.stderr.decode()
        assert message.startswith(f"fastbalance: error: source '{tmp_path}/[x].parquet': got no such file")
        assert message.count("\n") == 1

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
    def test_terminal_shows_progress_and_tables_of_its_width(self, data):
        plain = in_a_terminal("plan", data, *PLAN)
        assert "scanning labels" in plain
        assert "5/5" in plain
        table = plain[plain.index("balance uniform") :].splitlines()
        assert max(map(len, table)) == 72
        assert any("333" in line for line in table)

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
    def test_terminal_shows_the_stages_of_reshard(self, data, tmp_path):
        plain = in_a_terminal("reshard", data, tmp_path / "out", "--label", "y")
        for stage, steps in {"scanning labels": "5/5", "scattering": "1/1", "writing": "1/1"}.items():
            assert re.search(rf"{stage} +\S+ +{steps}", plain)
        assert "wrote " in plain

    @pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
    def test_reshard_goes_on_after_ctrl_c(self, tmp_path):
        (tmp_path / "data").mkdir()
        rows = np.arange(200_000)
        for shard in range(2):
            part = pa.table({"id": rows + shard * len(rows), "y": rows % 100 == 0})
            pq.write_table(part, tmp_path / "data" / f"{shard}.parquet", row_group_size=4000)
        out, work = tmp_path / "out", tmp_path / ".out.reshard"
        sizes = ("--group-rows", "4000", "--memory", "1MiB", "--shard-bytes", "1MiB")
        args = ("reshard", str(tmp_path / "data"), str(out), "--label", "y", *sizes)
        # What a shell starts in the background ignores SIGINT, and so do its children unless they are told.
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        command = [sys.executable, "-m", "fastbalance", *args]
        child = subprocess.Popen(command, stdout=-1, stderr=-1, preexec_fn=heed)
        while child.poll() is None and not list(work.glob("chunks/[!.]*")):
            time.sleep(0.005)
        child.send_signal(signal.SIGINT)
        printed = child.communicate(timeout=60)
        assert (child.returncode, *printed) == (130, b"", b"")
        assert not out.exists()
        done = len(list(work.glob("chunks/*")))
        assert done > 0
        assert not list(work.glob("*/.*"))
        assert output(*args).startswith(f"wrote {out}: rows 400,000, ")
        assert not work.exists()
