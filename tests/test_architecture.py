"""The direction of dependency between the crates is a security property."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

ALLOWED = {
    "blindai-core": set(),
    "blindai-tee": {"blindai-core"},
    "blindai-verify": {"blindai-core"},
    "blindai-engine": {"blindai-core"},
    # Its keys come in as an argument: it knows nothing of platforms.
    "blindai-store": {"blindai-core"},
    # Both ends fetch: the server to staple, the client to depend on nobody's stapling.
    "blindai-collateral": {"blindai-core"},
    "blindai-server": {
        "blindai-core",
        "blindai-tee",
        "blindai-engine",
        "blindai-store",
        "blindai-collateral",
    },
    "blindai-client": {"blindai-core", "blindai-verify", "blindai-collateral"},
    # One program for both ends; the engine is there because a worker is the same program, the
    # verifier because kept evidence is judged without a connection.
    "blindai-cli": {
        "blindai-core",
        "blindai-engine",
        "blindai-server",
        "blindai-client",
        "blindai-verify",
        "blindai-collateral",
    },
    "blindai-python": {"blindai-core", "blindai-client"},
}


def test_crates_depend_in_one_direction() -> None:
    command = ["cargo", "metadata", "--no-deps", "--format-version", "1", "--locked"]
    metadata = json.loads(subprocess.check_output(command, cwd=ROOT))
    seen = {}
    for package in metadata["packages"]:
        seen[package["name"]] = {
            dependency["name"]
            for dependency in package["dependencies"]
            if dependency["name"].startswith("blindai-") and dependency["kind"] is None
        }
    assert seen.keys() == ALLOWED.keys()
    for crate, allowed in ALLOWED.items():
        assert seen[crate] <= allowed, f"{crate} depends on {seen[crate] - allowed}"


def test_the_page_draws_the_same_direction() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^(blindai-\w+|python/) +[^→\n]+(?:→ (.*))?$", page, re.M)
    drawn = {
        name.replace("python/", "blindai-python"): {
            f"blindai-{to}" for to in re.findall(r"\w+", tos)
        }
        for name, tos in rows
    }
    assert drawn == ALLOWED


def test_every_setting_is_documented_with_its_default() -> None:
    source = (ROOT / "crates/blindai-server/src/config.rs").read_text()
    docs = (ROOT / "docs/configuration.md").read_text()
    # Those of an entry for access stand in a table of their own.
    before, rest = docs.split("## Access\n", 1)
    table, after = rest.split("\n## ", 1)
    documented = set(re.findall(r"^\| `([a-z0-9_.]+)`", before + after, re.M))
    read = source[source.index("fn read(root") : source.index("fn contradictions")]
    keys, sections = set(), []
    # A section opens, a key is read, a section ends.
    tokens = r'\w+\.section\(\s*"(\w+)",\s*\|s\||\bs\.\w+\(\s*"(\w+)"|(\}\))'
    for section, key, end in re.findall(tokens, read):
        if section:
            sections.append(section)
        elif end:
            sections.pop()
        else:
            keys.add(".".join([*sections, key]))
    models = (ROOT / "crates/blindai-server/src/config/models.rs").read_text()
    for section, part in {
        "engine.batching": source[
            source.index("impl BatchingConfig") : source.index("impl Limits")
        ],
        "limits": source[source.index("impl Limits") : source.index("impl Default for Config")],
        "models": models[models.index("fn read(") : models.index("fn subject(")],
    }.items():
        keys |= {f"{section}.{key}" for key in re.findall(r'\bs\.\w+\(\s*"(\w+)"', part)}
    access = (ROOT / "crates/blindai-server/src/access/config.rs").read_text()
    access, entry = access[access.index("fn read(s: &mut Section) -> Self {\n        let") :].split(
        "impl Entry", 1
    )
    keys |= {f"access.{key}" for key in re.findall(r's\.(?:list|get)\("(\w+)"', access)}
    assert len(keys) > 20
    assert keys == documented
    entry = entry[: entry.index("fn digest(")]
    assert {"name", "roles", "models"} <= set(re.findall(r'"(\w+)"', entry))
    assert {key for key in re.findall(r'"(\w+)"', entry) if f"`{key}`" not in table} == set()


def test_every_code_of_an_error_is_documented() -> None:
    source = (ROOT / "crates/blindai-core/src/error.rs").read_text()
    codes = set(re.findall(r'^    \w+ = "([a-z-]+)", \w+, "', source, re.M))
    documented = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", (ROOT / "docs/api.md").read_text()))
    assert len(codes) > 20
    assert codes <= documented, f"not in docs/api.md: {codes - documented}"


def test_every_code_of_the_client_is_documented_with_what_to_do() -> None:
    source = (ROOT / "crates/blindai-client/src/error.rs").read_text().split("#[cfg(test)]")[0]
    classes = {"Unproven": "attestation", "Connection": "connection", "Local": "local"}
    codes, remedies = {"policy-invalid": "policy"}, []
    for function in source.split("pub(crate) fn ")[1:]:
        for kind, code in re.findall(r'Cause::(\w+)\("([a-z-]+)"\)', function):
            codes[code] = classes[kind]
            remedies += [(code, text) for text in re.findall(r'remedy =\s+"(.+)";', function)]
    page = (ROOT / "docs/verification.md").read_text().split("### Of the client\n")[1]
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| .+ \| (.+) \|$", page, re.M)
    assert len(rows) > 20
    assert dict(row[:2] for row in rows) == codes
    told = {code: remedy for code, _, remedy in rows}
    assert len(remedies) > 15
    assert [told[code] for code, _ in remedies] == [remedy for _, remedy in remedies]


def test_every_code_of_the_python_package_is_documented() -> None:
    folders = [ROOT / "python/blindai", ROOT / "python/src"]
    files = [
        file for folder in folders for file in folder.rglob("*") if file.suffix in (".py", ".rs")
    ]
    raised = r'(?:\w+Error|error::policy|malformed)\(\s*"([a-z]+(?:-[a-z]+)*)"'
    codes = {code for file in files for code in re.findall(raised, file.read_text())}
    pages = [(ROOT / "docs" / page).read_text() for page in ("api.md", "verification.md")]
    assert len(codes) > 15
    assert {code for code in codes if not any(f"`{code}`" in page for page in pages)} == set()


def test_every_status_over_http_has_one_of_grpc() -> None:
    page = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| `[A-Z_]+` \| (.*) \|$", page, re.M)
    told = set(re.findall(r"\b\d{3}\b", " ".join(rows)))
    statuses = set(re.findall(r"^\| (\d{3}) \| ", page, re.M))
    assert len(statuses) > 10
    assert statuses - told == {"415"}  # what is no call of gRPC
