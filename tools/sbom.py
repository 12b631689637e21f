#!/usr/bin/env python3
"""What is in the program: a CycloneDX 1.6 document, on standard output.

    python3 tools/sbom.py > blindai.cdx.json

From what cargo says is built for x86-64 Linux, with the digests of Cargo.lock, and from the pinned
ONNX Runtime. The same checkout gives the same bytes. What only builds the program (build scripts,
macros) has the scope `excluded`.

Standard library only, Python 3.11 or newer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import tomllib

if not __package__:
    # The root in place of tools/, where onnxruntime.py would hide the package of that name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = "blindai-cli"
TARGET = "x86_64-unknown-linux-gnu"


def main() -> None:
    json.dump(document(), sys.stdout, indent=1, sort_keys=True)
    print()


def document() -> dict[str, Any]:
    """The whole document."""
    metadata = cargo_metadata()
    packages = {reference(package): package for package in metadata["packages"]}
    names = {package["id"]: name for name, package in packages.items()}
    shipped, everything = tree("normal,no-proc-macro"), tree("normal,build")
    (root,) = (name for name in everything if packages[name]["name"] == PROGRAM)
    digests = checksums()
    components = [
        component(packages[name], digests, shipped=name in shipped) for name in everything - {root}
    ]
    graph = {
        names[node["id"]]: {names[other] for other in node["dependencies"]} & everything
        for node in metadata["resolve"]["nodes"]
        if names[node["id"]] in everything
    }
    library = engine()
    graph[root].add(library["bom-ref"])
    graph[library["bom-ref"]] = set()
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": main_component(packages[root])},
        "components": sorted([*components, library], key=lambda entry: entry["bom-ref"]),
        "dependencies": [{"ref": ref, "dependsOn": sorted(graph[ref])} for ref in sorted(graph)],
    }
    # Of the contents, so that equal documents have equal names.
    name = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {"serialNumber": name.urn, **body}


def cargo_metadata() -> dict[str, Any]:
    """What cargo knows of every package of the workspace."""
    command = ["cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={TARGET}"]
    return json.loads(subprocess.check_output(command, cwd=ROOT))


def tree(edges: str) -> set[str]:
    """What the program needs along such edges, with its own features and not those of others."""
    command = ["cargo", "tree", "--locked", "-p", PROGRAM, "--target", TARGET, "--edges", edges]
    command += ["--prefix", "none", "--no-dedupe", "--format", "{p}"]
    lines = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return {"pkg:cargo/{}@{}".format(*line.replace(" v", " ").split()[:2]) for line in lines}


def component(package: dict, digests: dict[tuple[str, str], str], *, shipped: bool) -> dict:
    """One crate."""
    entry = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "scope": "required" if shipped else "excluded",
    }
    if package["source"]:
        entry["purl"] = reference(package)
        digest = digests[package["name"], package["version"]]
        entry["hashes"] = [{"alg": "SHA-256", "content": digest}]
    if package["license"]:
        # Before SPDX was asked for, a slash stood for OR.
        expression = package["license"].replace("/", " OR ")
        entry["licenses"] = [{"expression": " ".join(expression.split())}]
    return entry


def main_component(package: dict) -> dict:
    """The program itself."""
    return {**component(package, {}, shipped=True), "type": "application", "name": "blindai"}


def engine() -> dict:
    """The library that is loaded at run time."""
    name = f"pkg:pypi/onnxruntime@{onnxruntime.VERSION}"
    return {
        "type": "library",
        "bom-ref": name,
        "purl": name,
        "name": onnxruntime.LIBRARY.name,
        "version": onnxruntime.VERSION,
        "scope": "required",
        "hashes": [{"alg": "SHA-256", "content": onnxruntime.LIBRARY_SHA256}],
        "licenses": [{"expression": "MIT"}],
    }


def reference(package: dict) -> str:
    """The package URL, which names one version of one crate."""
    return f"pkg:cargo/{package['name']}@{package['version']}"


def checksums() -> dict[tuple[str, str], str]:
    """The digests that cargo holds downloads to."""
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {
        (package["name"], package["version"]): package["checksum"]
        for package in lock["package"]
        if "checksum" in package
    }


if __name__ == "__main__":
    main()
