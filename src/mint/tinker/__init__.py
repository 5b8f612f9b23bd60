"""The Tinker SDK under an explicit name: `mint.tinker.X is tinker.X`, submodules included.

For programs that use MinT's names and the SDK's side by side. Holds no code of its own and loads the SDK
only when a name is used. Inside this file `tinker` is the installed SDK, as everywhere.
"""

from mint.client import namespace

TYPE_CHECKING = False  # as in `typing`, without its import
if TYPE_CHECKING:
    from tinker import *  # noqa: F403  # what `__getattr__` finds at run time, for type checkers
else:
    __getattr__ = namespace.tinker_attribute
    __dir__ = namespace.tinker_names

del namespace
