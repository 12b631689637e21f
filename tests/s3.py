"""A server that speaks S3, for models that are kept there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from support import free_ports, wait_for


@contextlib.contextmanager
def serving() -> Iterator[Any]:
    """A client of the server, which is there as long as the block lasts."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )

    def answers() -> bool:
        with contextlib.suppress(Exception):
            return bool(client.list_buckets())
        return False

    try:
        wait_for(answers, "moto")
        yield client
    finally:
        process.kill()
        process.wait()


def write_credentials(folder: Path, s3: Any, secret: str) -> str:
    """The file that names the server to a store, and the secret for it."""
    texts = {
        "aws_endpoint": s3.meta.endpoint_url,
        "aws_allow_http": "true",
        "aws_region": "us-east-1",
        "aws_access_key_id": "test",
        "aws_secret_access_key": secret,
    }
    file = folder / "credentials.toml"
    file.write_text("".join(f"{key} = {json.dumps(text)}\n" for key, text in texts.items()))
    return str(file)
