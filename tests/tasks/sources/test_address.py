"""Addresses of sources: buckets without credentials in them, folders, and what is refused."""

from __future__ import annotations

import pytest
from prefect import Flow

from ctclip_model.errors import ConfigurationError
from flows.ingest import ingest
from tasks.sources.address import parse_address

SECRET = "abc/def+SECRET"
WITH_SECRET = [
    f"s3://KEY:{SECRET}@bucket/ct-rate",
    f"S3://KEY:{SECRET}@bucket",
    f"s3://bucket/ct-rate?X-Amz-Signature={SECRET}",
    f"az://container/ct-rate?sig={SECRET}",
]


@pytest.mark.parametrize("text", WITH_SECRET)
def test_credentials_in_an_address_are_refused_and_not_repeated(text):
    with pytest.raises(ConfigurationError, match="give the address without") as refused:
        parse_address(text)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", WITH_SECRET)
def test_a_flow_refuses_them_before_prefect_records_its_parameters(text, tmp_path, monkeypatch):
    monkeypatch.setattr(Flow, "__call__", lambda *_, **__: pytest.fail("Prefect has the parameters"))
    with pytest.raises(ConfigurationError) as refused:
        ingest(source=text, data_root=tmp_path)
    assert SECRET not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("s3://bucket/ct-rate/", "s3://bucket/ct-rate"),
        ("S3://bucket/Ct-Rate", "s3://bucket/Ct-Rate"),
        ("s3://arn:aws:s3:eu-central-1:1:accesspoint/a@b/x", "s3://arn:aws:s3:eu-central-1:1:accesspoint/a@b/x"),
        ("/data/ct@rate:1?", "file:///data/ct@rate:1?"),
    ],
)
def test_addresses_without_credentials_are_taken(text, address):
    assert str(parse_address(text)) == address


@pytest.mark.parametrize("text", ["s4://bucket/x", "s3://"])
def test_what_is_no_bucket_is_refused(text):
    with pytest.raises(ConfigurationError):
        parse_address(text)
