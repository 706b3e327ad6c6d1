"""Objects of a real S3 server: whole or absent, never outside of their prefix, fetched again from where it stopped."""

from __future__ import annotations

from tests.s3_server import S3Server
from xlm_train.runtime.storage import Store


def test_create_once(s3: S3Server) -> None:
    store = Store(s3.url)
    assert store.create("lease/1", b"first")
    assert not store.create("lease/1", b"second")
    assert store.read("lease/1") == b"first"
    assert store.names("") == ["lease/1"]
