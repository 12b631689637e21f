"""Writes docs/python.md, the reference of the Python package, out of its sources.

The sources are read and not imported, so that it takes no build of the native part.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "blindai"
PAGE = ROOT / "docs" / "python.md"
HEAD = """<!-- Written by tools/python_reference.py out of python/blindai; do not edit. -->
# Python reference

What `import blindai` gives. How to begin is in [python/README.md](../python/README.md).
`blindai.aio` has `connect`, `Client` and `Models` once more for asyncio, whose methods are awaited;
`blindai.client` is [the API of BlindAI 0.3](compat-0.3.md).
"""

Definition = ast.ClassDef | ast.FunctionDef


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    """The page, whole: functions first, then classes by name."""
    public = sorted(definitions(), key=lambda of: (isinstance(of, ast.ClassDef), of.name))
    return "\n".join([HEAD, *(line for definition in public for line in section(definition))])


def definitions() -> Iterator[Definition]:
    """What `__init__.py` imports from the package's own modules and lists as public."""
    tree = parsed("__init__")
    names = next(n.value for n in tree.body if isinstance(n, ast.Assign))
    public = set(ast.literal_eval(names))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("blindai._"):
            wanted = public & {alias.name for alias in node.names} - {"__version__"}
            if not wanted:
                continue
            defined = {d.name: d for d in parsed(node.module.partition(".")[2]).body if named(d)}
            yield from (defined[name] for name in sorted(wanted))


def parsed(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def named(node: ast.AST) -> bool:
    return isinstance(node, Definition)


def section(of: Definition) -> Iterator[str]:
    yield f"## {of.name}\n"
    if isinstance(of, ast.FunctionDef):
        yield from function(of)
        return
    bases = [ast.unparse(base) for base in of.bases]
    yield f"A class{', of ' + ', '.join(f'`{base}`' for base in bases) if bases else ''}.\n"
    yield described(of)
    fields = [ast.unparse(node) for node in of.body if isinstance(node, ast.AnnAssign)]
    if fields:
        yield "\n".join(["```python", *fields, "```\n"])
    for method in of.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            yield f"### {of.name}.{method.name}\n"
            yield from function(method)


def function(of: ast.FunctionDef) -> Iterator[str]:
    marks = [ast.unparse(mark) for mark in of.decorator_list]
    if "property" in marks:
        yield f"A property: `{ast.unparse(of.returns)}`.\n"
    else:
        yield "\n".join(["```python", signature(of), "```\n"])
    yield described(of)


def signature(of: ast.FunctionDef) -> str:
    """The head of a function as ruff formats it: on one line, or one for each argument."""
    parts = [part for part in split(of.args) if part not in ("self", "cls")]
    returns = f" -> {ast.unparse(of.returns)}" if of.returns else ""
    line = f"def {of.name}({', '.join(parts)}){returns}: ..."
    if len(line) <= 100:
        return line
    return "\n".join([f"def {of.name}(", *(f"    {part}," for part in parts), f"){returns}: ..."])


def split(arguments: ast.arguments) -> Iterator[str]:
    """The arguments one by one, with types and defaults."""
    rest = arguments.vararg or arguments.kwarg
    assert not rest, "*args and **kwargs would be left out"
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    for argument, default in zip(plain, defaults, strict=True):
        yield told(argument, default)
    if arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield told(argument, default)


def told(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {value(default)}" if default else "")


def value(default: ast.expr) -> str:
    text = ast.unparse(default)
    return f'"{text[1:-1]}"' if text.startswith("'") else text


def described(of: Definition) -> str:
    """A docstring as Markdown: its sections (`Args:`, `Raises:`) become lists."""
    text = inspect.cleandoc(ast.get_docstring(of) or "").replace("``", "`")
    text = re.sub(r"^(Args|Attributes|Raises|Returns|Yields):$", r"**\1**\n", text, flags=re.M)
    lines, section = [], ""
    for line in text.splitlines():
        if line and line[0] != " ":
            section = line if line.startswith("**") else ""
        elif section in ("**Returns**", "**Yields**"):
            line = line.strip()
        elif section and re.match(r"    \S", line):
            line = "- " + re.sub(r"^(\*?\w+(?:, \w+)*):", r"`\1`:", line.strip())
        elif section:
            line = re.sub(r"^ {8}", "  ", line)
        lines.append(line)
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
