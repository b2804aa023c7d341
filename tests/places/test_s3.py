"""An object store of S3's protocol, as pyarrow meets it: what is written is read, and what is wrong is told early."""

from __future__ import annotations

import os
import time
import urllib.request

import pytest
import yaml

from bft_ray.cli import main
from bft_ray.config import ModelConfig, make_config
from bft_ray.config.load import BadConfig
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.places import storage, stores
from bft_ray.places.kept import delete, read_kept, write_kept
from bft_ray.places.remote import local_copy
from bft_ray.train.checkpoint import last_complete, remove_cut_off, step_name, write_manifest
from tests.support.s3 import KEY, S3, SECRET, s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server() as found:
        yield found


@pytest.fixture
def s3(server, monkeypatch) -> S3:
    """A bucket of the test's own."""
    own = S3(server.url)
    own.client.create_bucket(Bucket=own.bucket)
    return own


def test_a_folder_is_replaced_and_its_old_files_go(s3, tmp_path):
    (tmp_path / "one" / "deep").mkdir(parents=True)
    (tmp_path / "one" / "deep" / "a").write_bytes(b"12345")
    (tmp_path / "one" / "b").write_bytes(b"1")
    storage.put_folder(tmp_path / "one", s3.uri("x", "m"))
    assert storage.sizes_in(s3.uri("x", "m")) == {"b": 1, "deep/a": 5} and storage.folders_in(s3.uri("x"), "") == ["m"]
    (tmp_path / "one" / "b").rename(tmp_path / "one" / "c")
    storage.put_folder(tmp_path / "one", s3.uri("x", "m"))
    assert storage.sizes_in(s3.uri("x", "m")) == {"c": 1, "deep/a": 5}
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "d").write_bytes(b"12")
    storage.add_files(tmp_path / "two", s3.uri("x", "m"))  # of another rank
    assert storage.sizes_in(s3.uri("x", "m")) == {"c": 1, "d": 2, "deep/a": 5}
    assert (storage.fetch_folder(s3.uri("x", "m"), tmp_path / "three") / "deep" / "a").read_bytes() == b"12345"
    storage.remove_folder(s3.uri("x", "m"))
    assert s3.keys() == [] and not storage.exists(s3.uri("x", "m"))


def test_what_is_not_there_is_no_error(s3):
    assert not storage.exists(s3.uri("no")) and storage.folders_in(s3.uri("no"), "") == []
    assert storage.sizes_in(s3.uri("no")) == {} and read_kept(s3.uri("no.json")) is None
    storage.remove_folder(s3.uri("no"))
    delete(s3.uri("no.json"))
    write_kept(s3.uri("yes.json"), {"a": 1})
    assert read_kept(s3.uri("yes.json"), ["a"]) == {"a": 1}


def test_a_truncated_object_is_passed_over(s3, tmp_path, caplog):
    """A checkpoint's shard: the one before is taken, and a line names the object. A record counts as absent."""
    for step in (2, 4):
        (tmp_path / f"{step}" / "engine").mkdir(parents=True)
        (tmp_path / f"{step}" / "engine" / "shard").write_bytes(bytes(64))
        write_manifest(tmp_path / f"{step}", 0, 1)
        storage.put_folder(tmp_path / f"{step}", s3.uri("run", step_name(step)))
    assert last_complete(s3.uri("run")) == s3.uri("run", "step-00000004")
    s3.truncate("run/step-00000004/engine/shard")
    assert last_complete(s3.uri("run")) == s3.uri("run", "step-00000002")
    assert f"{s3.uri('run')}/step-00000004 is passed over: engine/shard has 32 of 64 bytes" in caplog.text
    remove_cut_off(s3.uri("run"))
    assert storage.folders_in(s3.uri("run"), "") == ["step-00000002"]
    write_kept(s3.uri("run", "run.json"), {"config": "x" * 50})
    s3.truncate("run/run.json")
    assert read_kept(s3.uri("run", "run.json")) is None and f"{s3.uri('run')}/run.json is damaged" in caplog.text


def test_a_copy_follows_its_object(s3, tmp_path):
    s3.put("m/a", b"one")
    first = local_copy(s3.uri("m"), tmp_path)
    assert (first / "a").read_bytes() == b"one" and local_copy(s3.uri("m"), tmp_path) == first
    s3.put("m/a", b"three")
    assert (local_copy(s3.uri("m"), tmp_path) / "a").read_bytes() == b"three"


def refused(uri: str) -> str:
    """The message of a check, which shows no secret."""
    with pytest.raises(BadInput) as error:
        storage.check_writable(uri)
    text = str(error.value)
    assert text.startswith(f"`cluster.storage_path` is '{uri}', but must be a URI ") and "\n" not in text
    assert not any(word in text for word in (KEY, SECRET, os.environ["AWS_SECRET_ACCESS_KEY"], "Request ID"))
    return text


def test_a_store_that_can_be_written_holds_nothing_of_the_check(s3):
    storage.check_writable(s3.uri("results"))
    assert s3.keys() == []


def test_a_bucket_that_does_not_exist_is_named(s3):
    text = refused("s3://no-such-bucket/results")
    assert "in a bucket that exists: there is no `no-such-bucket`. Make that bucket, or name another one." in text


@pytest.mark.slow
def test_credentials_that_the_store_refuses(make_tree, tmp_path, monkeypatch, capsys):
    """An unknown key, a wrong secret, a user without rights; of a server that asks."""
    boto3 = pytest.importorskip("boto3", reason="needs the extra `clouds`")
    with s3_server() as s3:
        login = {"aws_access_key_id": "first", "aws_secret_access_key": "first", "region_name": "us-east-1"}
        iam = boto3.client("iam", endpoint_url=s3.url, **login)
        iam.create_user(UserName="one")
        made = iam.create_access_key(UserName="one")["AccessKey"]
        asks = {"data": b"0", "method": "POST", "headers": {"Content-Type": "text/plain"}}
        urllib.request.urlopen(urllib.request.Request(f"{s3.url}/moto-api/reset-auth", **asks), timeout=10).close()
        try:
            found = [refused(s3.uri("results"))]
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
            found.append(refused(s3.uri("results")))
            with pytest.raises(BadInput, match=r"`model.path` is 's3://.*that these credentials may use"):
                load_tokenizer(ModelConfig(path=s3.uri("model")))
            config = tmp_path / "config.yaml"
            config.write_text(yaml.safe_dump(make_tree(cluster={"storage_path": s3.uri("results")})))
            words = ["clean", str(config), "--database", f"sqlite:///{tmp_path}/s.db"]
            assert main(words) == 1  # it makes no check before
            said = capsys.readouterr().err
            assert said.startswith(f"error: the object store failed: s3://{s3.bucket}/") and "Traceback" not in said
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
            found.append(refused(s3.uri("results")))
        finally:
            asks["data"] = b"inf"  # of the whole process
            urllib.request.urlopen(urllib.request.Request(f"{s3.url}/moto-api/reset-auth", **asks), timeout=10).close()
    for text, code in zip(found, ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "ACCESS_DENIED"), strict=True):
        assert f"that these credentials may use: the store answers {code}. Check AWS_ACCESS_KEY_ID" in text


@pytest.mark.long
def test_an_endpoint_that_is_away(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:word@127.0.0.1:9")
    started = time.monotonic()
    text = refused(s3.uri("results"))
    assert "of a store that answers: no connection at http://someone:***@127.0.0.1:9. Check AWS_ENDPOINT_URL" in text
    assert time.monotonic() - started < 90


def test_a_store_that_does_not_answer_ends_the_wait(s3, monkeypatch):
    """Google's client would try for 15 minutes."""
    monkeypatch.setattr(storage, "ANSWER_S", 0.2)
    monkeypatch.setattr(storage, "write_text", lambda path, text: time.sleep(1))
    assert f"that answers: no answer within {stores.ANSWER_S:g} s at {s3.url}" in refused(s3.uri("results"))


@pytest.mark.parametrize("bad", [f"s3://{KEY}:{SECRET}@bucket/x", "s3://bucket/x?endpoint_override=h&secret_key=sss"])
def test_an_address_with_a_secret_is_refused(make_tree, bad):
    with pytest.raises(BadConfig) as error:
        make_config(make_tree(cluster={"storage_path": bad}))
    text = str(error.value)
    assert "`cluster.storage_path` is 's3://...', but must be s3://BUCKET/FOLDER, without keys" in text
    assert KEY not in text and SECRET not in text and "sss" not in text


def test_an_address_without_one_is_not(make_tree):
    with pytest.raises(BadConfig, match=r"`cluster.storage_path` is 's3://', but must be s3://BUCKET/FOLDER"):
        make_config(make_tree(cluster={"storage_path": "s3://"}))
    for good in ("s3://bucket/a@b:c", "hdfs://user@host:9000/x", "gs://bucket", "fsspec+file:///tmp/x"):
        assert make_config(make_tree(cluster={"storage_path": good})).cluster.storage_path == good
