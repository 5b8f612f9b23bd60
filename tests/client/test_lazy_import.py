"""`import mint` costs nothing, and still prepares the SDK for whoever imports that later, or before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

HEAVY = {"tinker", "torch", "numpy", "fastapi", "pydantic", "httpx", "transformers"}

ACCEPTS_MINT_KEYS = """
from tinker.lib._auth_token_provider import ApiKeyAuthProvider
assert ApiKeyAuthProvider("sk-key").api_key == "sk-key"
"""


@pytest.mark.parametrize(
    "use",
    [
        "import mint",
        "import mint.tinker",
        "import mint.mint",
        "import mint; mint.mint.credentials()",
        "import mint.client.credentials",
        "from mint import client",
        "import mint; hasattr(mint, '_repr_html_'), hasattr(mint, '__wrapped__'), hasattr(mint, 'server')",
        "from mint import errors",
        "import mint.renderers; hasattr(mint.renderers, '__wrapped__')",
        "import mint; mint.renderers",
    ],
)
def test_nothing_heavy_is_loaded_until_a_name_of_the_sdk_is_used(run_python: Callable[..., str], use: str) -> None:
    loaded = run_python(f"del sys.modules['torch']\n{use}\nprint(*(m.partition('.')[0] for m in sys.modules))")
    assert not HEAVY & set(loaded.split())


def test_importing_mint_loads_few_modules(run_python: Callable[..., str]) -> None:
    # A stand-in for the time it takes, which a busy machine would make a flaky thing to assert.
    count = "before = set(sys.modules)\nimport mint\nprint(*sorted(set(sys.modules) - before))"
    loaded = run_python(count).split()
    assert {name for name in loaded if not name.startswith(("mint", "importlib"))} <= {
        "__future__",
        "warnings",
    }


def test_plain_tinker_after_mint(run_python: Callable[..., str]) -> None:
    run_python("import mint\nassert 'tinker' not in sys.modules\nimport tinker" + ACCEPTS_MINT_KEYS)


def test_plain_tinker_before_mint(run_python: Callable[..., str]) -> None:
    run_python("import tinker, mint" + ACCEPTS_MINT_KEYS)


def test_the_sdk_keeps_its_own_loader(run_python: Callable[..., str]) -> None:
    run_python(
        "import mint, tinker, inspect\n"
        "from importlib.machinery import SourceFileLoader\n"
        "assert type(tinker.__loader__) is type(tinker.__spec__.loader) is SourceFileLoader\n"
        "assert 'ServiceClient' in inspect.getsource(tinker)"
    )


def test_a_blocked_or_missing_sdk_does_not_trouble_other_users_of_the_package(
    run_python: Callable[..., str],
) -> None:
    run_python(
        "sys.modules['tinker'] = None\n"
        "import mint, mint.client.credentials\n"
        "try:\n    mint.ServiceClient\nexcept ImportError:\n    pass\nelse:\n    raise SystemExit(1)"
    )
