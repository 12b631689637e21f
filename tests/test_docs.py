"""The documentation: links lead somewhere, code can be read, commands exist, lists are complete."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import graphs
import pytest
import tomllib
import yaml
from support import ROOT, Answer, Http, Server, binary

import blindai
from tools import book, models, models_page, openapi, python_reference

# Not in target/, which is large, and not in hidden folders, which are not ours.
FOLDERS = [each for each in ROOT.iterdir() if each.is_dir() and each.name[0] != "."]
PAGES = sorted(
    [*ROOT.glob("*.md")]
    + [page for each in FOLDERS if each.name != "target" for page in each.glob("**/*.md")]
)
PAGES = [page for page in PAGES if not any(part[0] == "." for part in page.relative_to(ROOT).parts)]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def name(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else ""


pages = pytest.mark.parametrize("page", PAGES, ids=name)


def blocks(page: Path, language: str) -> Iterator[str]:
    """The code blocks of a page in a language; `""` are those without one."""
    for indent, of, code in FENCE.findall(page.read_text()):
        if of == language:
            yield re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text())


# Links


@pages
def test_links_lead_somewhere(page: Path) -> None:
    assert not list(broken(page))


def broken(page: Path) -> Iterator[str]:
    for link in re.finditer(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
        file = (page.parent / link[1]).resolve() if link[1] else page
        if not file.exists() or (link[2] and link[2] not in anchors(file)):
            yield link[0]


@functools.cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mdBook make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {
        re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[here](#a-heading) [no](#none) [gone](gone.md) [out](https://x/#y)\n"
    )
    assert list(broken(page)) == ["](#none)", "](gone.md)"]


# The site


def test_the_site_has_every_page() -> None:
    """Of docs/ and examples/, once. Other pages may be read beside the code only."""
    listed = book.pages()
    assert len(listed) == len(set(listed))
    ours = {page for page in PAGES if page.parent.name in ("docs", "examples")}
    assert ours - set(listed) == {book.SUMMARY}


def test_the_site_has_what_its_pages_link_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "SOURCE", tmp_path / "source")
    book.main()
    made = sorted((tmp_path / "source").rglob("*.md"))
    assert len(made) == len(book.pages()) + 1  # and the summary
    assert {page: list(broken(page)) for page in made if list(broken(page))} == {}


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=name)
def test_pictures_load_nothing(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    text = picture.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "prefers-color-scheme:dark" in text
    assert not re.search(r"https?:|href|<script|url\((?!#)|@import", text)


# The REST API


def test_the_rest_page_is_that_of_the_description() -> None:
    assert (ROOT / "docs/rest.md").read_text() == openapi.page(openapi.description()), (
        "python tools/openapi.py"
    )


def test_the_description_has_the_routes_of_the_table() -> None:
    """The table is held to the server by its own tests."""
    cell = re.compile(
        r"^\| (attested|public) \| REST v[12] \| `(\S+ \S+)` \| (\w+) \|$", re.MULTILINE
    )
    table = set(cell.findall((ROOT / "docs/access.md").read_text()))
    api = openapi.description()
    described = {
        (port, f"{method} {path}", operation["x-verb"])
        for method, path, operation in openapi.operations(api)
        for port in openapi.ports(api, operation)
    }
    assert len(table) > 25
    assert described == table


def test_the_description_is_whole() -> None:
    api = openapi.description()
    tags = {tag["name"] for tag in api["tags"]}
    for method, path, operation in openapi.operations(api):
        parameters = [openapi.resolve(api, each) for each in operation["parameters"]]
        in_path = {each["name"] for each in parameters if each["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path)), (method, path)
        assert set(operation["tags"]) <= tags
        assert "default" in operation["responses"]
    for reference in re.findall(r"\$ref: \"(#[^\"]+)\"", (ROOT / "docs/openapi.yaml").read_text()):
        assert openapi.resolve(api, {"$ref": reference})


def test_answers_are_as_described(server: Server, model: str) -> None:
    """Each route is asked once; its answer has the fields that the description names, no others."""
    place = {"{name}": model, "{version}": "1"}
    asked = set()
    with Http(server.port) as attested, Http(server.public_port) as public:
        ports = {"attested": attested, "public": public}
        for port, method, path, operation in in_order():
            if path == "/metrics":  # off, as the configuration says nothing of it
                continue
            target = re.sub(r"{\w+}", lambda name: place[name[0]], path)
            answer = ports[port].request(method, target, body_of(operation, method))
            assert_described(answer, operation)
            asked.add((answer.status, operation["summary"]))
    assert {status for status, _ in asked} == {200, 201, 404, 405}


def in_order() -> list[tuple[str, str, str, dict]]:
    """Every route: uploads first and deletions last, of which the second finds nothing."""
    order = ("PUT", "GET", "POST", "DELETE")
    api = openapi.description()
    routes = [
        (port, *route) for route in openapi.operations(api) for port in openapi.ports(api, route[2])
    ]
    return sorted(routes, key=lambda route: order.index(route[1]))


def body_of(operation: dict, method: str) -> bytes | dict | None:
    if operation["x-verb"] == "infer":
        tensor = {"datatype": "FP32", "shape": [1], "data": [1.0]}
        return {"inputs": [{"name": name, **tensor} for name in "ab"]}
    return graphs.add(["n"]) if method == "PUT" else None


def assert_described(answer: Answer, operation: dict) -> None:
    api, responses = openapi.description(), operation["responses"]
    response = openapi.resolve(api, responses.get(str(answer.status), responses["default"]))
    assert answer.status < 300 or response == api["components"]["responses"]["Error"], operation
    assert "x-request-id" in answer.headers
    content = response.get("content", {}).get("application/json")
    if content:
        assert_fits(answer.json, content["schema"], api)


def assert_fits(value: object, schema: dict, api: dict) -> None:
    """A value is of a schema, as far as the description goes."""
    schema = openapi.resolve(api, schema)
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if "type" in schema:
        assert isinstance(value, types[schema["type"]]), (value, schema)
    assert value in schema.get("enum", [value])
    assert value == schema.get("const", value)
    for each in value if "items" in schema else []:
        assert_fits(each, schema["items"], api)
    if "properties" in schema:
        assert set(schema.get("required", [])) <= set(value) <= set(schema["properties"]), value
        for name, own in value.items():
            assert_fits(own, schema["properties"][name], api)


# The Python reference


def test_the_python_reference_is_that_of_the_package() -> None:
    page = (ROOT / "docs/python.md").read_text()
    assert page == python_reference.page(), "python tools/python_reference.py"
    sections = set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    assert sections == set(blindai.__all__) - {"__version__", "aio"}


# The models


def test_the_page_of_models_has_every_model() -> None:
    """What was measured is of its day; what is known without measuring must be as it is now."""
    rows = re.findall(r"^\| (`\w+` .*) \|$", (ROOT / "docs/models.md").read_text(), re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    known = [[*models_page.origin(name), models_page.size(of)] for name, of in sizes().items()]
    assert [[*row[:4], row[5]] for row in cells] == known, "make bench"
    assert {len(row) for row in cells} == {len(models_page.COLUMNS)}


def sizes() -> dict[str, int]:
    return {name: models.build(name).stat().st_size for name in models.MODELS}


# Code


@pages
def test_python_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(code, filename=str(page))


@pages
def test_toml_and_yaml_parse(page: Path) -> None:
    for code in blocks(page, "toml"):
        tomllib.loads(code)
    for code in blocks(page, "yaml"):
        yaml.safe_load(code)


@pages
def test_commands_exist(page: Path) -> None:
    """The program has the subcommands and options that pages name, in blocks and in prose."""
    for words in commands(page):
        command, options = split(words)
        known = set(re.findall(r"--[a-z][a-z-]*", helped(command)))
        for option in options:
            assert option in known, (
                f"{' '.join(words)}: blindai {' '.join(command)} has no {option}"
            )


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `blindai` of every command on a page."""
    shell = [code for language in ("", "sh") for code in blocks(page, language)]
    lines = [line for code in shell for line in code.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:target/release/)?blindai [^`]+)`", prose(page))
    for line in lines:
        line = re.split(r"\s#|[|;<>]|&&|…", line)[0].removeprefix("$ ")
        words = [word for word in line.split() if "=" not in word or word.startswith("-")]
        # `blindai 0.1.0` is what the program prints.
        if words and words[0].rpartition("/")[2] == "blindai" and words[1:2] != ["0.1.0"]:
            yield words[1:]


def split(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The subcommand that words begin with, and their long options."""
    command: tuple[str, ...] = ()
    for word in words:
        if word not in subcommands(command):
            break
        command = (*command, word)
    options = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
    if words and not words[0].startswith("-"):
        assert command, f"blindai has no command {words[0]!r}"
    return command, options


@functools.cache
def subcommands(command: tuple[str, ...]) -> set[str]:
    listed = re.search(r"^Commands:\n((?:  .*\n)+)", helped(command), re.MULTILINE)
    return set(re.findall(r"^  (\w[\w-]*)", listed[1], re.MULTILINE)) if listed else set()


@functools.cache
def helped(command: tuple[str, ...]) -> str:
    environment = os.environ | {"COLUMNS": "400"}
    run = [binary(), *command, "--help"]
    return subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_page_of_the_command_line_has_every_command() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    listed = re.findall(r"^\| `blindai ([^`]+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(" ".join(command) for command in leaves(()))


def test_every_option_is_documented() -> None:
    """On the page of its command, or on that of the command line."""
    for command in leaves(()):
        pages = {"bench": "benchmarks.md", "proxy": "proxy.md"}
        pages = ["cli.md", *([pages[command[0]]] if command[0] in pages else [])]
        text = "".join((ROOT / "docs" / page).read_text() for page in pages)
        options = re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", helped(command), re.MULTILINE)
        told = re.findall(r"--[a-z][a-z-]*", text)
        assert set(options) - set(told) <= {"--help"}, command


def leaves(command: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The commands that are not only there for others below them."""
    below = subcommands(command) - {"help"}
    for each in below:
        yield from leaves((*command, each))
    if not below:
        yield command


def test_commands_that_there_are_not_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```\nblindai attest host:1 --polcy p.toml\n```\n`blindai atest`\n")
    wrong, unknown = commands(page)
    command, options = split(wrong)
    assert command == ("attest",)
    assert options == ["--polcy"]
    with pytest.raises(AssertionError, match="no command 'atest'"):
        split(unknown)
