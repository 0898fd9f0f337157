"""Guided copies that are instances of the class they were made from too.

diffusers looks at the class of a scheduler, a guider or a pipeline, and writes its name to files. So a guided copy
gets a class of its own: a subclass of ours and of the one it was made from, with the name of the latter.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar


@functools.cache
def guided_subclass(guided: Any, base: type) -> Any:
    """Return the subclass of ``guided`` and ``base``, made once.

    Args:
        guided: One of our classes; ``guided._members(base)`` returns what the subclass has of its own.
        base: The class of the object that is guided.
    """
    named = {"__module__": base.__module__, "__doc__": base.__doc__, "_plain": base}
    return type(base.__name__, (guided, base), {**named, **guided._members(base)})


class GuidedCopy:
    """A guided scheduler or guider; copies *of it* are plain, for pipelines sample something else with a copy."""

    _plain: ClassVar[Any] = None  # the class it was made from
    _guiding: ClassVar[tuple[str, ...]] = ()  # attributes that guide, which a plain copy lacks

    @classmethod
    def _members(cls, base: Any) -> dict[str, Any]:
        return {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Leave what ``__new__`` made as it is."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in vars(self).items() if name not in self._guiding}
        return object.__new__, (self._plain,), state
