"""The changes that MinT makes to the Tinker SDK, in place, once it is loaded.

 1. Keys that begin with `sk-` are taken, and sent as they are.
 2. `MINT_API_KEY` and `MINT_BASE_URL` win over the SDK's variables wherever the SDK reads those.
 3. Where a base URL and a key are settled together, what is missing comes from a running server of this user.
 4. An `sk-` key is never sent to the SDK's own hosted service, which cannot know it.
 5. With no key at all, the error says how to start a server and what to set.
 6. A pickled sampling client prepares the SDK in the process that loads it.
 7. `get_tokenizer()` asks the server for the tokenizer of a model that only the server has.

The SDK must be of a version that this was tested with: an older one is refused, a newer one is warned of.

It knows private modules of the SDK. It tells a check or a variable by what it does where it can, so that one text
serves several SDK versions, and reports what it did not find. How an endpoint is chosen it must not know: that is
`discovery`.
"""

from __future__ import annotations

import functools
import re
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from mint.client import discovery, pickling, tokenizers
from mint.client.credentials import canonical_url
from mint.client.namespace import mint_version

OLDEST_SDK, TESTED_SDK = "0.30.4", "0.38.0"
"""The versions of the SDK that MinT is tested with, from and to; pyproject.toml says the same."""

NO_KEY_MESSAGE = (
    "No API key is set, and no running MinT server of yours was found that one could be taken from. Either"
    " start a server on this machine with `mint serve`: your programs then find it by themselves. Or set"
    " MINT_BASE_URL and MINT_API_KEY, or pass base_url= and api_key=. (TINKER_BASE_URL and TINKER_API_KEY"
    " are read too.) `mint.mint.credentials()` shows what is found."
)
WRONG_PREFIX_MESSAGE = "The api_key must start with 'sk-' (a MinT key) or 'tml-' (a Tinker key)"
NO_HOME_MESSAGE = (
    "An 'sk-' key belongs to a MinT server, and no base URL says which: set MINT_BASE_URL or pass base_url=."
    " The key was not sent to the default address, {default}."
)


def apply() -> None:
    """Patch the loaded SDK. Repeating it does nothing; what cannot be found is reported in a warning.

    Raises:
        ImportError: the SDK is older than MinT can prepare.
    """
    version = str(getattr(import_module("tinker"), "__version__", "of unknown version"))
    _check_version(version)
    missing = []
    for patch in _PATCHES:
        try:
            patch()
        except (AttributeError, ImportError) as error:
            missing.append(f"{patch.__name__.strip('_')} ({error})")
    if missing:
        message = f"tinker {version} could not be prepared for MinT in full (tested with {TESTED_SDK}): "
        warnings.warn(message + "; ".join(missing), RuntimeWarning, stacklevel=2)


def _check_version(version: str) -> None:
    """Say so where the SDK is outside the range; a version of another form is nobody's release, and is tried."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if found is None:
        return
    numbers = tuple(int(part or 0) for part in found.groups())
    oldest, newest = (tuple(map(int, each.split("."))) for each in (OLDEST_SDK, TESTED_SDK))
    if numbers < oldest:
        raise ImportError(
            f"mint {mint_version()} needs tinker {OLDEST_SDK} or later, and tinker {version} is installed:"
            " upgrade it, or use it without importing mint, with a 'tml-' key"
        )
    if numbers[:2] > newest[:2]:
        text = f"mint {mint_version()} was tested with tinker up to {TESTED_SDK}, and tinker {version} is installed"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


# ---------------------------------------------------------------- what is patched


def _mint_keys() -> None:
    provider = _sdk("lib._auth_token_provider").ApiKeyAuthProvider
    error_type = _sdk("_exceptions").TinkerError

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def __init__(self: Any, api_key: str) -> None:  # noqa: N807  # a method of the SDK's class
            if api_key.startswith("sk-"):
                stand_in = f"tml-{api_key}"
                original(self, stand_in)
                _swap_attributes(self, stand_in, api_key)
                return
            try:
                original(self, api_key)
            except error_type as error:
                raise error_type(WRONG_PREFIX_MESSAGE) from error

        return __init__

    _wrap(provider, "__init__", make)


def _environment_of_keys() -> None:
    auth = _sdk("lib._auth_token_provider")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def with_environment(api_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
            return original(api_key or discovery.environment_api_key(), *args, **kwargs)

        return with_environment

    _wrap(auth.ApiKeyAuthProvider, "create_or_env", make)
    _wrap_everywhere(auth, "resolve_auth_provider", make)


def _environment_of_base_url() -> None:
    def make(original: Callable[..., str]) -> Callable[..., str]:
        def with_environment(base_url: object = None) -> str:
            return original(base_url or discovery.environment_base_url())

        return with_environment

    _wrap_everywhere(_sdk("lib.base_url"), "resolve_base_url", make)


def _endpoint_of_holders() -> None:
    """The holders, which every public client is built on, and the cache of those without a session."""
    holders = _sdk("lib.internal_client_holder")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def with_endpoint(
            self: Any, *args: Any, base_url: str | None = None, api_key: str | None = None, **kwargs: Any
        ) -> Any:
            found = discovery.resolve(base_url, api_key)
            return original(self, *args, base_url=found.base_url, api_key=found.api_key, **kwargs)

        return with_endpoint

    def make_for_cache(original: Callable[..., Any]) -> Callable[..., Any]:
        # Its keys must be what the arguments stand for now: the environment may change between calls.
        def with_endpoint(self: Any, base_url: str | None, api_key: str | None) -> Any:
            found = discovery.resolve(base_url, api_key)
            return original(self, found.base_url, found.api_key)

        return with_endpoint

    _wrap(holders.InternalClientHolder, "__init__", make)
    if hasattr(holders, "_SessionlessHolderCache"):  # older versions cache none
        _wrap(holders._SessionlessHolderCache, "get_or_create", make_for_cache)


def _endpoint_of_requests() -> None:
    """The class that sends: the last place where a key and the address it goes to are both in hand."""
    auth = _sdk("lib._auth_token_provider")

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def __init__(  # noqa: N807  # a method of the SDK's class
            self: Any,
            *,
            base_url: object = None,
            api_key: str | None = None,
            _auth: Any = None,
            **kwargs: Any,
        ) -> None:
            if _auth is None:
                found = discovery.resolve(base_url, api_key)
                base_url = found.base_url
                _auth = auth.resolve_auth_provider(found.api_key, enforce_cmd=False)
            _refuse_hosted_service(_auth, base_url)
            original(self, base_url=base_url, _auth=_auth, **kwargs)

        return __init__

    _wrap(_sdk("_client").AsyncTinker, "__init__", make)


def _refuse_hosted_service(auth_provider: Any, base_url: object) -> None:
    urls = _sdk("lib.base_url")
    is_mint_key = getattr(auth_provider, "api_key", "").startswith("sk-")
    if is_mint_key and _origin(urls.resolve_base_url(base_url)) == _origin(urls.DEFAULT_BASE_URL):
        raise _sdk("_exceptions").TinkerError(NO_HOME_MESSAGE.format(default=urls.DEFAULT_BASE_URL))


def _origin(url: str) -> str:
    return urlsplit(canonical_url(url)).netloc


def _has_credentials() -> None:
    # Its neighbour `get_tinker_token` stays without the file's key: it cannot say where the key may go.
    def make(original: Callable[[], bool]) -> Callable[[], bool]:
        def tinker_has_credentials() -> bool:
            return original() or discovery.resolve().server is not None

        return tinker_has_credentials

    _wrap_everywhere(_sdk("auth"), "tinker_has_credentials", make)


def _missing_key_message() -> None:
    module = _sdk("lib._auth_token_provider")
    _replace_everywhere("MISSING_API_KEY_MESSAGE", module.MISSING_API_KEY_MESSAGE, NO_KEY_MESSAGE)


def _pickles() -> None:
    def make(original: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], tuple[Any, ...]]:
        def __reduce__(self: Any) -> tuple[Any, ...]:  # noqa: N807  # a method of the SDK's class
            return pickling.revive, original(self)

        return __reduce__

    _wrap(_sdk("lib.public_interfaces.sampling_client").SamplingClient, "__reduce__", make)


def _tokenizers() -> None:
    def make(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def get_tokenizer(self: Any) -> Any:
            return tokenizers.load(self.holder, _model_of(self)) or original(self)

        return get_tokenizer

    for name in ("sampling", "training"):
        client = getattr(_sdk(f"lib.public_interfaces.{name}_client"), f"{name.capitalize()}Client")
        _wrap(client, "get_tokenizer", make)


def _model_of(client: Any) -> str:
    """The base model of a client of either kind."""
    if hasattr(client, "get_base_model"):
        return str(client.get_base_model())
    return str(client.get_info().model_data.model_name)


_PATCHES = (
    # The last guard first: `sk-` keys are taken only when they cannot go astray.
    _endpoint_of_requests,
    _mint_keys,
    _environment_of_keys,
    _environment_of_base_url,
    _endpoint_of_holders,
    _has_credentials,
    _missing_key_message,
    _pickles,
    _tokenizers,
)

# ---------------------------------------------------------------- how it is patched


def _sdk(name: str) -> ModuleType:
    return import_module(f"tinker.{name}")


def _wrap(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Replace a function or method by `make(it)`, once."""
    if name not in vars(owner):
        raise AttributeError(f"{owner.__name__} has no {name} of its own")
    original = vars(owner)[name]
    is_static = isinstance(original, staticmethod)
    function = original.__func__ if is_static else original
    if hasattr(function, "_mint_wraps"):
        return
    wrapper = functools.wraps(function)(make(function))
    wrapper._mint_wraps = function  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(wrapper) if is_static else wrapper)


def _wrap_everywhere(module: ModuleType, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Wrap a function of a module, also where other modules of the SDK have imported it by name."""
    original = getattr(module, name)
    _wrap(module, name, make)
    _replace_everywhere(name, original, getattr(module, name))


def _replace_everywhere(name: str, old: object, new: object) -> None:
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "tinker" and vars(module).get(name) is old:
            setattr(module, name, new)


def _swap_attributes(instance: object, old: str, new: str) -> None:
    for name, value in list(vars(instance).items()):
        if value == old:
            setattr(instance, name, new)
