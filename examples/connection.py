"""What every example begins with: its options, and the connection that they name."""

from __future__ import annotations

import argparse
from pathlib import Path

import blindai

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ROOT / "testdata" / "models" / "inputs"


def options(description: str) -> argparse.ArgumentParser:
    """The options that all examples have."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--server", default="localhost:50051", help="host and attested port")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--policy", type=Path, help="which code on which hardware to trust")
    trust.add_argument(
        "--simulation", action="store_true", help="trust a simulated TEE: it protects nothing"
    )
    return parser


def connect(arguments: argparse.Namespace) -> blindai.Client:
    """Verify the server, connect to it, and show what was verified."""
    client = blindai.connect(
        arguments.server, simulation=arguments.simulation, policy=arguments.policy
    )
    print(client.report, flush=True)
    return client


def built(name: str) -> Path:
    """Where `python tools/models.py build NAME` puts a model."""
    return ROOT / ".cache" / "models" / f"{name}.onnx"
