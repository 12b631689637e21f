"""Writes docs/rest.md, the page of the REST API, out of docs/openapi.yaml.

The page is text that loads nothing from elsewhere, unlike those that a browser makes of OpenAPI.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

DOCS = Path(__file__).resolve().parent.parent / "docs"
METHODS = ("get", "put", "post", "delete")


def main() -> None:
    (DOCS / "rest.md").write_text(page(description()))


def description() -> dict:
    """The API as docs/openapi.yaml says it."""
    return yaml.safe_load((DOCS / "openapi.yaml").read_text())


def operations(api: dict) -> Iterator[tuple[str, str, dict]]:
    """Method, path and operation; the parameters of a path are those of its operations too."""
    for path, item in api["paths"].items():
        for method in METHODS:
            if method in item:
                own = item[method].get("parameters", [])
                shared = item.get("parameters", [])
                yield method.upper(), path, item[method] | {"parameters": [*shared, *own]}


def ports(api: dict, operation: dict) -> list[str]:
    """The ports that serve an operation: `attested`, `public`."""
    return [server["description"] for server in operation.get("servers", api["servers"])]


def page(api: dict) -> str:
    """The page, whole."""
    return "\n".join(
        [*head(api), *(line for tag in api["tags"] for line in chapter(api, tag)), *schemas(api)]
    )


def head(api: dict) -> Iterator[str]:
    yield "<!-- Written by tools/openapi.py out of openapi.yaml; do not edit. -->"
    yield "# REST\n"
    yield f"{api['info']['description']}\n"
    yield "The same for programs is [openapi.yaml](openapi.yaml) (OpenAPI 3.1). Types, parameters"
    yield "and codes are in [api.md](api.md), verbs and roles in [access.md](access.md).\n"
    yield "What is refused is told by an [Error](#error), and every answer has an `x-request-id`:"
    yield "the caller's own, or one of the server's.\n"
    yield "| credential | what it is |"
    yield "|---|---|"
    yield "| none | where the configuration lets anonymous callers do it |"
    for name, scheme in api["components"]["securitySchemes"].items():
        yield f"| {name} | {scheme['description']} |"
    yield ""


def chapter(api: dict, tag: dict) -> Iterator[str]:
    yield f"## {tag['name']}\n"
    yield f"{tag['description']}\n"
    for method, path, operation in operations(api):
        if tag["name"] in operation["tags"]:
            yield from section(api, method, path, operation)


def section(api: dict, method: str, path: str, operation: dict) -> Iterator[str]:
    yield f"### `{method} {path}`\n"
    yield f"{operation['summary']}. {operation.get('description', '')}".strip() + "\n"
    yield f"Port: {', '.join(ports(api, operation))}. Verb: {operation['x-verb']}.\n"
    rows = [*parameters(api, operation), *bodies(operation), *responses(api, operation)]
    yield "| where | name | |"
    yield "|---|---|---|"
    yield from rows
    yield ""


def parameters(api: dict, operation: dict) -> Iterator[str]:
    for parameter in operation["parameters"]:
        parameter = resolve(api, parameter)
        kind = {"path": "path", "query": "query", "header": "header"}[parameter["in"]]
        yield row(kind, f"`{parameter['name']}`", said(parameter, parameter["schema"]))


def bodies(operation: dict) -> Iterator[str]:
    body = operation.get("requestBody", {})
    for kind, media in body.get("content", {}).items():
        yield row("body", f"`{kind}`", said(body, media["schema"]))


def responses(api: dict, operation: dict) -> Iterator[str]:
    """What may be answered; `default`, which is the same everywhere, stands at the top once."""
    for status, response in operation["responses"].items():
        if status == "default":
            continue
        response = resolve(api, response)
        forms = [named(media["schema"]) for media in response.get("content", {}).values()]
        headers = ", ".join(f"`{name}`" for name in response.get("headers", {}))
        told = response["description"] + (f" Headers: {headers}." if headers else "")
        yield row("answer", " ".join([f"`{status}`", *filter(None, forms)]), told)


def schemas(api: dict) -> Iterator[str]:
    yield "## Objects\n"
    for name, schema in api["components"]["schemas"].items():
        yield f"### {name}\n"
        yield "| field | type | |"
        yield "|---|---|---|"
        for field, form in schema["properties"].items():
            optional = "" if field in schema["required"] else "may be missing. "
            yield row(f"`{field}`", shape(form), f"{optional}{form.get('description', '')}".strip())
        yield ""


def said(thing: dict, schema: dict) -> str:
    values = [f"`{value}`" for value in schema.get("enum", [])]
    told = [thing.get("description", ""), named(schema)]
    return " ".join([*filter(None, told), *([f"One of {', '.join(values)}."] if values else [])])


def named(schema: dict) -> str:
    """A link to the object that a schema names."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return f"[{name}](#{name.lower()})" if name else ""


def shape(schema: dict) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array" and "items" in schema:
        return f"array of {shape(schema['items'])}"
    return named(schema) or schema["type"]


def resolve(api: dict, thing: dict) -> dict:
    """What a reference (`#/components/…`) stands for; other things as they are."""
    if "$ref" not in thing:
        return thing
    for part in thing["$ref"].removeprefix("#/").split("/"):
        api = api[part]
    return api


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
