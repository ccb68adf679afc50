"""Object stores: what a read costs, what is waited out, what is not, and what is said. Against a server on loopback."""

import io
import logging
import socket

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch

from fastbalance import BalancedLoader, retries
from fastbalance.errors import SourceError
from fastbalance.paths import list_files
from fastbalance.retries import is_denied, is_local, passes
from fastbalance.source import open_source

from .object_store import most_at_once, object_store

GROUP_ROWS = 2000
COLUMNS = ["y", "a", "b", "c"]


def make_table(n_rows=10 * GROUP_ROWS, seed=0):
    rng = np.random.default_rng(seed)
    floats = {name: rng.random(n_rows) for name in COLUMNS[1:]}
    return pa.table({"y": (rng.random(n_rows) < 0.1).astype(np.int64), **floats})


def as_bytes(table, kind="parquet"):
    out = io.BytesIO()
    if kind == "parquet":  # plain values: every column chunk has the same size, above what pyarrow reads over
        options = {"use_dictionary": False, "compression": "none", "write_page_checksum": True}
        pq.write_table(table, out, row_group_size=GROUP_ROWS, **options)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=GROUP_ROWS)
    return out.getvalue()


TABLE = make_table()
PARQUET = as_bytes(TABLE)


@pytest.fixture(scope="module")
def server():
    with object_store() as store:
        yield store


@pytest.fixture
def store(server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)
    server.put("bucket/p.parquet", PARQUET)
    server.clear()
    return server


def once(store, **options):
    """A file system whose client repeats nothing."""
    options = {"endpoint_override": store.endpoint, "scheme": "http", "region": "us-east-1"} | options
    return pafs.S3FileSystem(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1))


def methods(requests):
    return " ".join(one.method for one in requests)


def served(requests):
    return sum(one.sent for one in requests if one.method == "GET")


def failure(function, *args, **options):
    with pytest.raises(SourceError) as caught:
        function(*args, **options)
    return str(caught.value)


# What it costs


def test_a_file_is_opened_by_its_footer(store):
    source = open_source(store.uri("bucket/p.parquet"))
    assert methods(store.requests()) == "HEAD HEAD GET"  # is it a file; its size; its end
    assert served(store.requests()) == 2**16
    assert source.n_rows == len(TABLE)
    assert not source.shards[0].is_local
    wide = as_bytes(pa.table({f"column_{i}": [i] for i in range(1500)}))
    store.put("bucket/wide.parquet", wide)
    store.clear()
    open_source(store.uri("bucket/wide.parquet"))
    assert methods(store.requests()) == "HEAD HEAD GET GET"
    assert served(store.requests()) < len(wide) + 2**16


def test_groups_are_read_by_the_columns_wanted(store):
    source = open_source(store.uri("bucket/p.parquet"))
    chunk = int(source.group_bytes(["a"])[0])
    for groups, columns, chunks, gets in [
        ([3], ["a"], 1, 1),
        ([3], ["y", "b"], 2, 2),
        ([3], ["a", "b"], 2, 1),  # neighbours
        ([3, 4, 5], ["a"], 3, 3),
        ([3, 4, 5], COLUMNS, 12, 1),
        ([3, 5], COLUMNS, 8, 2),
    ]:
        store.clear()
        table = source.read_groups(groups, columns)
        rows = np.concatenate([np.arange(g * GROUP_ROWS, (g + 1) * GROUP_ROWS) for g in groups])
        assert table.equals(TABLE.select(columns).take(rows).replace_schema_metadata())
        assert methods(store.requests()) == " ".join(["HEAD"] + gets * ["GET"])
        assert served(store.requests()) == chunks * chunk == source.group_bytes(columns)[groups].sum()


def test_arrow_files_and_streams(store):
    for kind in ("file", "stream"):
        store.put(f"bucket/{kind}", as_bytes(TABLE, kind))
        store.clear()
        source = open_source(store.uri(f"bucket/{kind}"))
        opened = store.requests()
        store.clear()
        table = source.read_groups([7, 2], ["b", "y"])
        rows = np.r_[7 * GROUP_ROWS : 8 * GROUP_ROWS, 2 * GROUP_ROWS : 3 * GROUP_ROWS]
        assert table.equals(TABLE.select(["b", "y"]).take(rows))
        if kind == "stream":
            assert methods(opened) == "HEAD HEAD GET GET HEAD HEAD GET"
            assert not store.requests()
        else:
            values = 4 * 8 * GROUP_ROWS
            assert values < served(store.requests()) < 1.1 * values
            assert served(opened) < 2**16 + 1.1 * TABLE["y"].nbytes


def test_a_prefix_is_listed_in_pages(store):
    store.put_many("many/deep/part-{:05d}.parquet", 2000, b"x")
    for path in ("many/deep", "many/**/part-*.parquet"):
        store.clear()
        files = list_files(store.uri(path), None)
        assert [files[0][1], len(files)] == ["many/deep/part-00000.parquet", 2000]
        pages = [one for one in store.requests() if "max-keys=1000" in one.query]
        assert len(pages) == 2
        assert len(store.requests()) <= 4


def test_shards_are_opened_side_by_side(store):
    store.put_many("side/p{:02d}.parquet", 16, as_bytes(TABLE.slice(0, 100)))
    store.clear()
    store.fail("slow", ".parquet", times=16, delay_s=0.2)
    source = open_source(store.uri("side"))
    assert len(source.shards) == 16
    requests = store.requests(".parquet")
    assert [methods(requests).count(method) for method in ("HEAD", "GET")] == [16, 16]
    assert most_at_once(requests) >= 4


def test_a_stream_of_batches_is_that_of_local_files(store, tmp_path):
    for i in range(4):
        body = as_bytes(make_table(seed=i))
        store.put(f"train/{i}.parquet", body)
        (tmp_path / f"{i}.parquet").write_bytes(body)
    options = {"label": "y", "batch_size": 500, "columns": {"x": ["a", "b"]}, "memory": "600KiB", "device": "cpu"}
    loader = BalancedLoader(store.uri("train/*.parquet"), **options)
    local = BalancedLoader(str(tmp_path), **options)
    store.clear()
    for _ in range(2):
        for ours, theirs in zip(loader, local, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loader.close()
    stats = loader.stats()
    assert stats.groups_read > 40
    assert stats.bytes_read == pytest.approx(served(store.requests()), rel=0.03)
    local.close()


# Which file systems


def test_uris_and_file_systems(store):
    files = once(store)
    named = open_source("bucket/p.parquet", filesystem=files)
    below = open_source("p.parquet", filesystem=pafs.SubTreeFileSystem("bucket", files))
    web = open_source(f"http://{store.endpoint}/bucket/p.parquet")
    memory = fsspec.filesystem("memory")
    memory.pipe("/objects/p.parquet", PARQUET)
    near = open_source("memory://objects/p.parquet")
    globbed = open_source("memory://objects/*.parquet")
    for source in (named, below, web, near, globbed):
        assert source.read_group(4, ["b"]).equals(TABLE.select(["b"]).slice(4 * GROUP_ROWS, GROUP_ROWS))
    assert [source.shards[0].is_local for source in (named, below, web, near)] == [False, False, False, True]


def test_fsspec_does_not_read_ahead(store):
    source = open_source(f"http://{store.endpoint}/bucket/p.parquet")
    store.clear()
    source.read_group(4, ["y", "b"])
    assert served(store.requests()) == source.group_bytes(["y", "b"])[4]


def test_what_is_local():
    local, memory = pafs.LocalFileSystem(), fsspec.filesystem("memory")
    assert is_local(local)
    assert is_local(pafs.SubTreeFileSystem("/tmp", local))
    assert is_local(pafs.PyFileSystem(pafs.FSSpecHandler(memory)))
    assert is_local(pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("file"))))
    assert not is_local(pafs.GcsFileSystem(anonymous=True))
    assert not is_local(pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("http"))))


# What is waited out


FAULTS = [
    ("status", {"status": 500, "code": "InternalError"}),
    ("status", {"status": 503, "code": "SlowDown"}),
    ("reset", {}),
    ("cut", {}),
    ("slow", {"delay_s": 2.5}),
]


@pytest.mark.parametrize(("kind", "fields"), FAULTS, ids=["500", "503", "reset", "cut", "slow"])
def test_errors_that_pass_are_waited_out(store, caplog, kind, fields):
    source = open_source("bucket/p.parquet", filesystem=once(store, request_timeout=1))
    store.clear()
    store.fail(kind, "p.parquet", **fields)
    with caplog.at_level(logging.WARNING, "fastbalance"):
        table = source.read_groups([2, 3], ["a"])
    assert table.equals(TABLE.select(["a"]).slice(2 * GROUP_ROWS, 2 * GROUP_ROWS))
    assert [methods(store.requests()).count(method) for method in ("HEAD", "GET")] in ([2, 3], [2, 4])
    (record,) = caplog.records
    assert record.getMessage().startswith("bucket/p.parquet, groups [2, 3]: AWS Error ")
    assert record.getMessage().endswith(" s")


def test_opening_waits_too(store):
    store.fail("status", "p.parquet", method="HEAD", skip=1)
    store.fail("cut", "p.parquet")
    assert open_source("bucket/p.parquet", filesystem=once(store)).n_rows == len(TABLE)
    assert methods(store.requests()) == "HEAD HEAD HEAD GET HEAD GET"


def test_errors_that_stay_are_reported_with_the_tries(store):
    source = open_source("bucket/p.parquet", filesystem=once(store))
    store.clear()
    store.fail("status", "p.parquet", times=1000)
    text = failure(source.read_groups, [2, 3, 4], COLUMNS)
    assert text.startswith(
        f"bucket/p.parquet, groups [2, 3, 4]: got no answer in {retries.TRIES} tries, the last time AWS Error SLOW_DOWN"
    )
    assert text.endswith("The store could not be reached, or did not answer: check the endpoint, region and network.")
    assert methods(store.requests()).count("GET") == retries.TRIES  # a run of groups costs no more than one


def test_uris_are_repeated_by_the_client_with_growing_delays(store):
    source = open_source(store.uri("bucket/p.parquet"))
    store.clear()
    store.fail("status", "p.parquet", method="HEAD", times=2)
    source.read_group(0, ["a"])
    assert methods(store.requests()) == "HEAD HEAD HEAD GET"  # by pyarrow: we saw no error
    store.clear()
    store.fail("status", "p.parquet", method="HEAD", times=1000)
    assert "HTTP status 503" in failure(open_source, store.uri("bucket/p.parquet"))
    assert methods(store.requests()) == "HEAD HEAD HEAD"  # the first request is not repeated by us


def test_a_client_of_fsspec_is_waited_for(store, caplog):
    source = open_source(f"http://{store.endpoint}/bucket/p.parquet")
    for kind in ("status", "reset", "cut"):
        store.clear()
        store.fail(kind, "p.parquet")
        assert source.read_group(2, ["a"]).equals(TABLE.select(["a"]).slice(2 * GROUP_ROWS, GROUP_ROWS))
        assert methods(store.requests()).count("GET") == 2
    assert len(caplog.records) in (2, 3)  # aiohttp itself repeats what was asked on a connection that had been used
    store.fail("status", "p.parquet", times=1000)
    text = failure(source.read_group, 2, ["a"])
    assert f"groups [2]: got no answer in {retries.TRIES} tries, the last time" in text


# What is not


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (403, "ExpiredToken"), (400, "ExpiredToken")])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_denied_access_is_not_tried_again(store, status, code, method):
    source = open_source("bucket/p.parquet", filesystem=once(store))
    store.clear()
    store.fail("status", "p.parquet", method=method, status=status, code=code, times=1000)
    text = failure(source.read_groups, [2, 3], COLUMNS)
    assert text.startswith("bucket/p.parquet, groups [2, 3]: got ")
    assert text.endswith("Access was denied: renew the credentials if they have expired, and check what they may read.")
    assert methods(store.requests()) == ("HEAD GET" if method == "GET" else "HEAD")


def test_damaged_pages_and_changed_objects_are_not_tried_again(store):
    chunk = pq.read_metadata(io.BytesIO(PARQUET)).row_group(3).column(1)
    damaged = bytearray(PARQUET)
    damaged[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    store.put("bucket/damaged.parquet", bytes(damaged))
    source = open_source(store.uri("bucket/damaged.parquet"))
    store.clear()
    text = failure(source.read_groups, [2, 3, 4], ["a"])
    assert text.startswith("bucket/damaged.parquet, groups [3]: got ")
    assert text.endswith("The file may be damaged: write or copy it again.")
    assert methods(store.requests()).count("HEAD") == 3  # the run, its first group, the one at fault
    store.put("bucket/damaged.parquet", PARQUET + PARQUET)
    store.clear()
    assert "allowed: the file as it was when opened" in failure(source.read_group, 0, ["a"])
    assert methods(store.requests()) == "HEAD"


def test_an_object_that_is_gone(store):
    source = open_source(store.uri("bucket/p.parquet"))
    store.clear()
    store.fail("status", "p.parquet", method="HEAD", status=404, code="NoSuchKey")
    text = failure(source.read_group, 0, ["a"])
    assert text.endswith("There is no such object (any more): write or copy it again, and open the data anew.")
    assert methods(store.requests()) == "HEAD"


# What opening says


def test_what_is_not_there_is_said_at_once(store):
    for path in ("nowhere/p.parquet", "bucket/q.parquet", "nowhere", "nowhere/*.parquet"):
        assert "got no such file" in failure(open_source, store.uri(path))
    assert len(store.requests()) <= 12
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    for uri in (f"s3://bucket/p.parquet?{options}", f"http://127.0.0.1:{port}/p.parquet"):
        text = failure(open_source, uri)
        assert text.startswith(f"source '{uri}': got ")
        assert text.endswith("or did not answer: check the endpoint, region and network.")


def test_denied_access_is_said_at_once(store):
    for method in ("HEAD", "GET"):
        store.clear()
        store.fail("status", method=method, status=403, code="AccessDenied", times=1000)
        for path in ("bucket/p.parquet", "bucket"):
            assert "Access was denied: renew the credentials" in failure(open_source, store.uri(path))
        assert len(store.requests()) <= 6
    store.clear()
    store.fail("status", method="HEAD", status=403, times=1000)
    store.fail("status", method="GET", status=403, times=1000)
    assert "Access was denied" in failure(open_source, f"http://{store.endpoint}/bucket/p.parquet")


def test_secrets_of_uris_are_not_shown(store):
    text = failure(open_source, store.uri("id:hidden@bucket/none.parquet"))
    assert text.startswith(f"source 's3://...@bucket/none.parquet?{store.options}': got no such file")
    text = failure(open_source, f"http://{store.endpoint}/none.parquet?X-Amz-Signature=hidden&part=1")
    assert "X-Amz-Signature=...&part=1" in text
    assert "hidden" not in text


def test_schemes_nobody_knows():
    text = failure(open_source, "nonsense://bucket/p.parquet")
    assert text.startswith("source 'nonsense://bucket/p.parquet': got Protocol not known: nonsense")


def test_google_gives_up_in_seconds(monkeypatch):
    monkeypatch.setattr("fastbalance.paths._GCS_RETRY_S", 1)
    text = failure(open_source, "gs://anonymous@bucket/p.parquet?scheme=http&endpoint_override=127.0.0.1:9")
    assert text.endswith("or did not answer: check the endpoint, region and network.")


TEXTS = [  # what clients say: passes, is denied
    ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached", True, False),
    ("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.", True, False),
    ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", True, False),
    ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", False, True),
    ("Unable to parse ExceptionName: ExpiredToken Message: The provided token has expired.", False, True),
    ("key 'connect/timeout' in bucket 'network': AWS Error NO_SUCH_BUCKET during ListObjectsV2", False, False),
    ("key 'credentials' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject operation", True, False),
    ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False, True),
    ("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: The bucket does not exist", False, False),
    ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of PerformWork()", True, False),
    ("google::cloud::Status(PERMISSION_DENIED: Permanent error in GetObjectMetadata: Forbidden", False, True),
    ("Failed to get token from DefaultAzureCredential.", False, True),
    ("Corrupt snappy compressed data.", False, False),
    ("CRC checksum verification failed for page index 0", False, False),
    ("Couldn't deserialize thrift: TProtocolException: Invalid data", False, False),
]


@pytest.mark.parametrize(("text", "again", "denied"), TEXTS)
def test_errors_are_told_apart_by_their_texts(text, again, denied):
    assert (passes(OSError(text)), is_denied(OSError(text))) == (again, denied)
