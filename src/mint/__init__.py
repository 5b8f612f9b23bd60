"""MinT: every public name of the Tinker SDK, ready for MinT servers.

`import mint as tinker` keeps a Tinker program as it is: the names here are the SDK's own objects
(`mint.ServiceClient is tinker.ServiceClient`). Importing this package also prepares the SDK itself, so
that a later plain `import tinker` in the same process takes MinT keys and finds MinT's environment.

The one name that differs is `__version__`: here it is MinT's own, `mint.tinker.__version__` is the SDK's.

The server and the engine live in this package too, so importing it must cost next to nothing: it must not
load the SDK, and knows nothing of what the SDK's names are until one is used.
"""

from mint.client import hook, namespace

TYPE_CHECKING = False  # as in `typing`, whose import would cost more than all else here
if TYPE_CHECKING:
    from tinker import *  # noqa: F403  # what `__getattr__` finds at run time, for type checkers

    from mint import mint as mint
    from mint import tinker as tinker
else:
    __getattr__ = namespace.mint_attribute
    __dir__ = namespace.mint_names

hook.install()
del hook, namespace
