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
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    (root,) = (id for id, package in packages.items() if package["name"] == PROGRAM)
    shipped = closure(root, nodes, packages, build=False)
    everything = closure(root, nodes, packages, build=True)
    digests = checksums()
    components = [
        component(packages[id], digests, shipped=id in shipped) for id in everything - {root}
    ]
    components.append(engine())
    graph = [edges(id, nodes, packages, everything) for id in everything]
    graph.append({"ref": engine()["bom-ref"]})
    (program,) = (edge for edge in graph if edge["ref"] == reference(packages[root]))
    program["dependsOn"] = sorted([*program["dependsOn"], engine()["bom-ref"]])
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": main_component(packages[root])},
        "components": sorted(components, key=lambda entry: entry["bom-ref"]),
        "dependencies": sorted(graph, key=lambda entry: entry["ref"]),
    }
    # Of the contents, so that equal documents have equal names.
    name = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {"serialNumber": name.urn, **body}


def cargo_metadata() -> dict[str, Any]:
    """What cargo would build, by its own word."""
    command = ["cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={TARGET}"]
    return json.loads(subprocess.check_output(command, cwd=ROOT))


def closure(root: str, nodes: dict, packages: dict, *, build: bool) -> set[str]:
    """The packages that `root` needs; with `build`, also those that only run while it is built."""
    found, pending = {root}, [root]
    while pending:
        for id in needed(nodes[pending.pop()], packages, build=build):
            if id not in found:
                found.add(id)
                pending.append(id)
    return found


def needed(node: dict, packages: dict, *, build: bool) -> list[str]:
    """What one package needs directly. Never what only its tests need."""
    kinds = {None, "build"} if build else {None}
    return [
        dependency["pkg"]
        for dependency in node["deps"]
        if any(kind["kind"] in kinds for kind in dependency["dep_kinds"])
        and (build or not is_macro(packages[dependency["pkg"]]))
    ]


def is_macro(package: dict) -> bool:
    """Whether it runs in the compiler and nowhere else."""
    return any("proc-macro" in target["kind"] for target in package["targets"])


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


def edges(id: str, nodes: dict, packages: dict, everything: set[str]) -> dict:
    """What depends on what."""
    direct = set(needed(nodes[id], packages, build=True)) & everything
    names = sorted(reference(packages[other]) for other in direct)
    return {"ref": reference(packages[id]), "dependsOn": names}


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
