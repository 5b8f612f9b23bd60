"""Pages of the site that are written from the code, so that they cannot say anything else: a hook of MkDocs.

`howto/NAME.md` is an example, its docstring as text and its source below; `http.md` is the OpenAPI document. What
mkdocs.yml names no place for is put at the end of "How to" or of "Guides".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from mint.config import EngineConfig, ModelSource, ServerConfig
from mint.server.app import create_app
from mint.tiny import NAME, model_path

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "quickstart")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give a place to examples and documents that have none."""
    documents = [path.name for path in sorted((ROOT / "docs").glob("*.md"))]
    _complete(config, "How to", [f"howto/{path.stem}.md" for path in EXAMPLES])
    _complete(config, "Guides", documents)
    return config


def _complete(config: MkDocsConfig, section: str, pages: list[str]) -> None:
    named = str(config.nav)
    (places,) = (entry[section] for entry in config.nav or [] if section in entry)
    places += [page for page in pages if f"'{page}'" not in named]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the written pages."""
    pages = {f"howto/{path.stem}.md": example_page(path) for path in EXAMPLES} | {"http.md": http_page(openapi())}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def example_page(path: Path) -> str:
    """An example: what its docstring says, how it is run, and its source."""
    source = path.read_text()
    docstring = ast.get_docstring(ast.parse(source)) or ""
    title, _, text = docstring.partition("\n\n")
    body = source.split('"""\n', 1)[1].lstrip()
    wide = "---\nhide: [toc]\n---"  # room for 120 columns of code
    below = f"This is `examples/{path.name}`:\n\n```python\n{body}```"
    return f"{wide}\n\n# {title.rstrip('.')}\n\n{text}\n\n{below}\n"


def openapi() -> dict[str, Any]:
    """The document of a server that serves mint/tiny. Nothing is started."""
    with TemporaryDirectory() as folder:
        models = (ModelSource(NAME, str(model_path())),)
        return create_app(ServerConfig(data_dir=Path(folder), models=models, engine=EngineConfig())).openapi()


def http_page(document: dict[str, Any]) -> str:
    """Every route by the noun it belongs to."""
    routes: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            noun = route.get("tags", ["other"])[0]
            routes.setdefault(noun, []).append("\n".join(_route(method.upper(), path, route)))
    intro = (
        "# HTTP reference\n\nWritten from the server's OpenAPI document, which a running server has at "
        "`/openapi.json`. A key goes into the header `X-API-Key`, or `Authorization: Bearer …`.\n\n"
        "Operations are answered at once with a `request_id`; their result is what `retrieve_future` answers. Their "
        "bodies are Tinker's, JSON or protobuf, which the server reads by itself: OpenAPI has no schema for those.\n"
    )
    sections = [f"## {noun.capitalize()}\n\n" + "\n".join(parts) for noun, parts in routes.items()]
    return intro + "\n" + "\n".join(sections)


def _route(method: str, path: str, route: dict[str, Any]) -> Iterator[str]:
    yield f"### `{method} {path}`\n"
    yield f"{route.get('description', '').strip()}\n"
    parameters = route.get("parameters", [])
    if parameters:
        yield "| parameter | in | type | |\n|---|---|---|---|"
        for each in parameters:
            required = "required" if each.get("required") else _default(each["schema"])
            yield f"| `{each['name']}` | {each['in']} | {_type(each['schema'])} | {required} |"
        yield ""


def _default(schema: dict[str, Any]) -> str:
    return f"default `{schema['default']}`" if schema.get("default") is not None else ""


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    return str(schema.get("type", "any"))
