"""The Census, local, public and on S3: read back, built once, sampled, and served by what fails in every way."""

import json
import logging
import os
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import boto3
import cellxgene_census
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from scipy import sparse

from lib import io
from lib.data import census, panel, split
from lib.fit import runs, summary
from lib.io import InputError
from lib.run import cli
from lib.study import S3, Sample, load_study, parse_study
from lib.train import baselines, loop

REGIME = {"all": {"genes": 12, "cells": 300}}
SPLIT = {"validation": 0.1, "test": 0.1}
PUBLIC = (
    "(is_primary_data == True) and (tissue_type == 'tissue') and (disease == 'normal') and "
    "(assay in [\"10x 3' v3\", 'Drop-seq'])"
)
USABLE = "is_primary_data and tissue_type == 'tissue' and disease == 'normal' and assay != 'Smart-seq2'"


def labels():
    """obs of 800 cells: 16 donors in 4 data sets, and in each data set some cells that no study should use."""
    cell = np.arange(800)
    columns = {
        "dataset_id": cell // 200, "donor_id": cell // 50, "tissue_general": cell // 100 % 2,
        "tissue_type": cell % 17 == 0, "disease": cell % 11 == 0, "assay": cell % 7 % 3,
    }  # fmt: skip
    names = {
        "dataset_id": [f"data set {n}" for n in range(4)], "donor_id": [f"donor {n:02}" for n in range(16)],
        "tissue_general": ["blood", "skin of body"], "tissue_type": ["tissue", "cell culture"],
        "disease": ["normal", "influenza"], "assay": ["10x 3' v3", "Drop-seq", "Smart-seq2"],
    }  # fmt: skip
    table = pd.DataFrame({key: np.array(names[key])[value.astype(int)] for key, value in columns.items()})
    return table.assign(is_primary_data=cell % 13 > 0)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder that holds a Census which says that it is a public release."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("release") / "soma"
    counts = rng.poisson(rng.gamma(2, 1, 30) * rng.gamma(3, 1 / 3, (800, 30))).astype(np.float32)
    var = pd.DataFrame({"feature_id": [f"ENSG{gene:011d}" for gene in range(30)], "feature_name": "same"})
    census.write(folder, var, [(labels(), sparse.csr_matrix(counts))], {"census_build_date": "2025-11-08"})
    return folder


@pytest.fixture(scope="module")
def bucket(release):
    """Port of an S3 server on loopback: bucket `census` holds the release and its manifest, readable by anyone."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    before = dict(os.environ)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-west-2", **keys)
    place = {"LocationConstraint": "us-west-2"}
    client.create_bucket(Bucket="census", ACL="public-read", CreateBucketConfiguration=place)
    where = {"uri": "s3://census/soma", "relative_uri": "soma", "s3_region": "us-west-2"}
    mirrors = {"default": "here", "here": {"provider": "S3", "base_uri": "s3://census/", "region": "us-west-2"}}
    releases = {"2025-11-08": {"release_date": None, "release_build": "2025-11-08", "soma": where}}
    content = {"MIRRORS": json.dumps(mirrors), "RELEASE": json.dumps(releases)}
    for path in (path for path in release.rglob("*") if path.is_file()):
        content[f"soma/{path.relative_to(release)}"] = path.read_bytes()
    for name, body in content.items():
        client.put_object(Bucket="census", Key=name, Body=body, ACL="public-read")
    assert dict(os.environ) == before  # no credentials for other tests
    yield port
    server.stop()


CODES = {503: "SlowDown", 403: "AccessDenied"}


class Proxy(ThreadingHTTPServer):
    """Stands between client and server. `fault(number, request)` says what happens to a request; None lets it pass.

    Faults: an HTTP status, "close" (no answer) or "silent".
    """

    daemon_threads, block_on_close = True, False

    def __init__(self, upstream):
        super().__init__(("127.0.0.1", 0), Passing)
        self.upstream, self.fault, self.requests = upstream, lambda number, request: None, []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, address):
        """A client that has gone away is what these tests are about."""


class Passing(BaseHTTPRequestHandler):
    """One request to the proxy."""

    def do_GET(self):
        proxy = self.server
        proxy.requests.append(f"{self.requestline}\n{self.headers}")
        fault = proxy.fault(len(proxy.requests), proxy.requests[-1])
        if fault in CODES:
            self.answer(fault, {}, f"<Error><Code>{CODES[fault]}</Code><Message>no</Message></Error>".encode())
        elif fault == "silent":
            time.sleep(60)
        elif fault != "close":
            server = HTTPConnection("127.0.0.1", proxy.upstream)
            server.request(self.command, self.path, headers=dict(self.headers))
            reply = server.getresponse()
            self.answer(reply.status, dict(reply.headers), reply.read())

    do_HEAD = do_GET

    def answer(self, status, headers, body):
        self.send_response_only(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def proxy(bucket):
    with Proxy(bucket) as proxy:
        yield proxy
        proxy.shutdown()


@pytest.fixture
def hasty(monkeypatch):
    """Limits of a second, so that the tests of a limit do not take minutes."""
    monkeypatch.setattr(census, "PATIENCE", 3.0)
    monkeypatch.setattr(census, "READ", 1.0)
    monkeypatch.setattr(census, "PAUSES", (0.05,))
    limits = {"vfs.s3.connect_timeout_ms": 500, "vfs.s3.request_timeout_ms": 500, "vfs.s3.connect_max_tries": 2}
    monkeypatch.setattr(census, "TILEDB", census.TILEDB | limits)


@pytest.fixture
def local(study_file, release):
    """Write a study of the Census as a folder."""

    def write(name="local", **source):
        return study_file(name, census={"uri": str(release)} | source, regimes=REGIME, split=SPLIT)

    return write


@pytest.fixture
def mirror(local, proxy):
    """A study of the same Census behind the proxy."""
    return local("mirror", uri="s3://census/soma", s3={"endpoint": proxy.endpoint})


@pytest.fixture(scope="module")
def expected(release, tmp_path_factory):
    """The panel of that Census, read from its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "ROOT", tmp_path_factory.mktemp("expected"))
        content = TINY | {"census": {"uri": str(release)}, "regimes": REGIME, "split": SPLIT}
        return built(parse_study(content, "local"))


def built(study, **given):
    return panel.read(panel.build(study, "all", **given))


def same(one, other):
    assert np.array_equal(one.X, other.X) and np.array_equal(one.layers["counts"], other.layers["counts"])
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)


def counts_of(request):
    return "X/raw/__fragments" in request and "__fragment_metadata" not in request


def test_the_public_default_takes_each_normal_primary_cell_of_tissue_counted_in_molecules(local, release):
    adata = built(local(sample={"each": 120}))
    usable = labels().query(USABLE)
    made = adata.uns["provenance"]
    assert made["filter"] == PUBLIC and made["cells_available"] == len(usable)
    assert set(adata.obs["soma_joinid"]) <= set(usable.index)
    # And the panel says enough to find its cells again.
    assert (made["census"]["version"], made["census"]["schema"]) == ("2025-11-08", "2.4.0")
    with cellxgene_census.open_soma(uri=str(release)) as collection:
        again = cellxgene_census.get_anndata(
            collection, "homo_sapiens", obs_value_filter=made["filter"], obs_coords=adata.obs["soma_joinid"].tolist()
        )
    assert np.array_equal(again.X.toarray()[:, adata.var["soma_joinid"]], adata.layers["counts"])


def test_tissues_narrow_both_the_default_and_a_given_filter(local):
    given = {None: USABLE, "donor_id == 'donor 03' or donor_id == 'donor 04'": "150 <= index < 250"}
    with census.open_census(local()) as collection:
        for condition, usable in given.items():
            found, said = split.cells(collection, local(filter=condition, tissues=["skin of body"]))
            left = labels().query(usable).query("tissue_general == 'skin of body'")
            assert found["soma_joinid"].tolist() == left.index.tolist()
            assert said["filter"].endswith("and (tissue_general in ['skin of body'])")


@pytest.mark.parametrize("source, said", [
    ({"tissues": ["skin"]}, "no tissue_general 'skin'; the nearest label is 'skin of body'"),
    ({"filter": "(nnz > 1 or 'Dropseq' != assay)"}, "no assay 'Dropseq'; the nearest label is 'Drop-seq'"),
    ({"filter": "colour == 'red'"}, "colour does not exist in schema'); write a condition such as nnz > 500 on"),
    ({"filter": "disease is 'normal'"}, "cannot be used (SOMAError"),
    ({"filter": "nnz > 10000"}, "no cell of the Census passes census.filter 'nnz > 10000'"),
    ({"sample": {"by": "organ", "each": 5}}, "no obs column 'organ'"),
])  # fmt: skip
def test_a_filter_that_would_find_nothing_in_silence_is_refused(local, source, said):
    with pytest.raises(InputError) as caught:
        panel.build(local(**source), "all")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def frame(sizes, donors):
    """Cells of data sets of those sizes, each donor's cells side by side."""
    dataset = np.repeat(np.arange(len(sizes)), sizes)
    donor = np.concatenate([np.arange(size) * donors // size for size in sizes])
    return pd.DataFrame({"soma_joinid": np.arange(len(dataset)) * 3, "dataset_id": dataset, "donor_id": donor})


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 200), st.integers(1, 90),
    st.integers(1, 100),
)  # fmt: skip
def test_every_label_gets_its_cap_as_far_as_its_donors_allow(sizes, donors, each, per_donor, block):
    cells = frame(sizes, donors)
    asked = Sample(by="dataset_id", each=each, per_donor=per_donor, block=block)
    drawn = cells.iloc[split.sample(cells, asked, 0)]
    allowed = cells.groupby(["dataset_id", "donor_id"]).size().clip(upper=per_donor).groupby("dataset_id").sum()
    assert drawn.groupby("dataset_id").size().to_dict() == allowed.clip(upper=each).to_dict()
    assert drawn.groupby(["dataset_id", "donor_id"]).size().max() <= per_donor
    assert drawn["soma_joinid"].is_monotonic_increasing and drawn["soma_joinid"].is_unique


def test_the_sample_is_whole_blocks_of_neighbours_that_another_seed_changes():
    cells = frame([6400], 1)
    asked = Sample(each=640, block=96)  # ids are three apart: 32 cells in a block
    drawn = split.sample(cells, asked, 0)
    assert len(np.unique(cells["soma_joinid"].iloc[drawn] // 96)) == 20
    assert np.array_equal(drawn, split.sample(cells, asked, 0))
    assert not np.array_equal(drawn, split.sample(cells, asked, 1))


def test_a_panel_from_s3_is_that_of_the_same_census_in_a_folder(mirror, expected, proxy):
    steps = []
    adata = built(mirror, progress=lambda done, cells: steps.append((done, cells)))
    same(adata, expected)
    assert steps == sorted(steps) and steps[-1] == (540, 540)  # 240 training cells for the genes, then all 300
    assert adata.uns["provenance"]["census"]["uri"] == "s3://census/soma"
    assert adata.uns["provenance"]["filter"] == PUBLIC
    assert not any("authorization:" in request.lower() for request in proxy.requests)
    assert sorted(path.name for path in mirror.folder("all").iterdir()) == [".panel.lock", "panel.h5ad"]


def test_a_private_mirror_is_sent_the_credentials_of_the_environment(study_file, proxy, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = {"endpoint": proxy.endpoint, "region": "eu-west-1", "signed": True}
    with census.open_census(study_file(census={"uri": "s3://census/soma", "s3": server})) as collection:
        assert census.describe(collection)["cells"] == 800
    signed = [request for request in proxy.requests if "Credential=mine/" in request and "/eu-west-1/s3/" in request]
    assert len(signed) == len(proxy.requests) > 0


def test_the_proxy_of_the_environment_is_asked_for_what_does_not_go_past_it(study_file, proxy, hasty, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    proxy.fault = lambda number, request: 403
    for address, asked in {"http://far.test:81": True, proxy.endpoint: False}.items():
        study, before = study_file(census={"uri": "s3://census/soma", "s3": {"endpoint": address}}), len(proxy.requests)
        with pytest.raises(InputError), census.open_census(study):
            pass
        requests = [request.split()[1] for request in proxy.requests[before:]]
        assert requests and all(request.startswith("http://far.test:81/") == asked for request in requests)


def test_a_dated_release_is_found_through_the_client_s_manifest(study_file, bucket, monkeypatch, expected):
    from cellxgene_census import _release_directory

    server = f"http://127.0.0.1:{bucket}"
    for name in ("MIRRORS", "RELEASE"):
        monkeypatch.setattr(_release_directory, f"CELL_CENSUS_{name}_DIRECTORY_URL", f"{server}/census/{name}")
    monkeypatch.setattr(census, "TILEDB", census.TILEDB | census._server(S3(endpoint=server)))
    study = study_file(census={"version": "2025-11-08"}, regimes=REGIME, split=SPLIT)
    same(built(study), expected)
    absent, said = study_file("absent", census={"version": "2025-11-09"}), r"2025-11-09 .* there are 2025-11-08\."
    with pytest.raises(InputError, match=said), census.open_census(absent):
        pass


def test_a_block_that_stalls_once_is_asked_for_again(hasty):
    """TileDB repeats what fails by itself; what hangs is given up here, and repeated."""
    calls, released = [], threading.Event()

    def work():
        calls.append(len(calls))
        return "counts" if len(calls) > 1 else released.wait(30)

    assert census.fetch(SimpleNamespace(uri="s3://census/soma"), work) == "counts" and calls == [0, 1]
    released.set()


@pytest.mark.parametrize(("place", "fault"), [("open", "silent"), ("counts", 503)])
def test_a_lasting_fault_ends_in_one_sentence_and_leaves_no_panel(mirror, proxy, hasty, fault, place):
    proxy.fault = lambda number, request: fault if place == "open" or counts_of(request) else None
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        panel.build(mirror, "all")
    assert time.monotonic() - start < 40  # without a limit, 503 and "silent" would never end
    said = str(caught.value)
    assert "\n" not in said and "s3://census/soma" in said
    assert ("census.s3" if place == "open" else "run the same command again") in said
    assert not (mirror.folder("all") / "panel.h5ad").exists()


def test_a_broken_build_goes_on_and_reads_no_finished_block_again(mirror, proxy, expected, hasty, monkeypatch):
    """Each block of 128 cells needs requests of its own, as those of a large Census do."""
    monkeypatch.setattr(census, "CELLS", 128)
    no_cache = {"vfs.read_ahead_size": 2000, "sm.tile_cache_size": 0}
    monkeypatch.setattr(census, "TILEDB", census.TILEDB | no_cache)
    done, after = [], 3

    def counted(matrix, ids, genes, read=census._counts):
        result = read(matrix, ids, genes)
        done.append((genes is None, tuple(ids)))
        return result

    monkeypatch.setattr(census, "_counts", counted)
    proxy.fault = lambda number, request: "close" if len(done) >= after and counts_of(request) else None
    with pytest.raises(InputError):
        panel.build(mirror, "all")
    assert len(done) == after
    proxy.fault = lambda number, request: None
    adata = built(mirror)
    assert len(done) == len(set(done)) == 2 + 3  # 240 training cells, then all 300
    assert not (mirror.folder("all") / ".blocks").exists()
    same(adata, expected)


def test_the_small_census_study_goes_from_cells_drawn_on_a_server_to_laws(project, proxy, capsys):
    """params/census-small.yaml as it is, but for its server, its tissue and the numbers of genes, cells and updates."""
    content = yaml.safe_load((io.CODE / "params" / "census-small.yaml").read_text())
    content["census"] |= {"uri": "s3://census/soma", "s3": {"endpoint": proxy.endpoint}, "tissues": ["blood"]}
    content["census"].pop("version")
    content |= {"regimes": {"data-rich": {"genes": 12, "cells": 120}}, "fit": {"resamples": 100}, "seeds": [7]}
    content["split"] |= {"validation": 0.15, "test": 0.15, "random": 0.1, "cells": 20}
    content["train"] |= {"cells_seen": 640, "batch": 16, "evaluations": 2}
    (project / "params" / "small.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["check", "small"]) == 0 and "0.0 GB" in capsys.readouterr().out
    assert not proxy.requests and not (project / "data").exists()
    study = load_study("small")
    adata = panel.read(panel.build(study, "data-rich"))
    baselines.record(study, "data-rich", adata)
    for size in study.sizes:
        for seed in study.seeds_for(size.name):
            folder = study.run_folder("data-rich", size.name, seed)
            loop.train(panel.arrays(adata), size, seed, study.training("data-rich"), folder)
    table = runs.collect(study)
    law = summary.fit_laws(table, 100, 0)["data-rich"]["validation_mse"]
    assert law["n_sizes"] == len(study.sizes) and law["n_runs"] == len(table) == 8
    assert table["validation_donors"].min() >= 1 and adata.uns["provenance"]["census"]["uri"] == "s3://census/soma"


def test_a_census_is_built_again_only_when_what_made_it_changed(tiny, study_file, h5ad, counts):
    folder = io.ROOT / census.prepare(tiny)
    made = folder.stat().st_ino
    census.prepare(tiny)
    assert folder.stat().st_ino == made
    simulate = {**tiny.census.simulate.model_dump(), "seed": 5}
    census.prepare(study_file(census={"simulate": simulate}))
    assert folder.stat().st_ino != made
    with census.open_census(tiny) as collection:  # opening builds it back
        assert census.describe(collection)["simulated"]
    path, study = h5ad("one", counts), study_file(census={"h5ad": ["input/*.h5ad"]})
    for cells in (200, 100):
        h5ad("one", counts[:cells])
        os.utime(path, ns=(0, cells))
        with census.open_census(study) as collection:
            assert census.describe(collection)["cells"] == cells


def unavailable(study):
    with pytest.raises(InputError) as caught, census.open_census(study):
        pass
    return str(caught.value)


def test_what_is_no_census_is_refused(study_file, project):
    import tiledbsoma

    said = unavailable(study_file(census={"uri": "data/absent"}))
    assert "data/absent" in said and "census.uri" in said
    tiledbsoma.Collection.create(str(project / "other")).close()
    assert "no readable Census of human cells at other" in unavailable(study_file(census={"uri": "other"}))


def test_named_columns_are_read_as_donor_data_set_and_tissue(h5ad, study_file, counts):
    columns = {"patient": np.resize([1, 2, 3], 200), "batch": np.repeat(["p", "q"], 100), "organ": "skin"}
    h5ad("a", counts, donors=None, **columns, is_primary_data=np.arange(200) > 49)
    study = study_file(census={"h5ad": ["input/a.h5ad"], "donor": "patient", "dataset": "batch", "tissue": "organ"})
    with census.open_census(study) as collection:
        obs = cellxgene_census.get_obs(
            collection, census.ORGANISM, value_filter="is_primary_data == True and donor_id == '2'"
        )
    assert len(obs) == 50 and set(obs["tissue"]) == {"skin"} and obs["dataset_id"].tolist() == ["p"] * 16 + ["q"] * 34
