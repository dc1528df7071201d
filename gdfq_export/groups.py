"""Names that belong together: union-find over the tensors of a graph."""

from __future__ import annotations

from collections.abc import Iterable


class Groups:
    """Union-find over tensor names; the earliest member in graph order is the representative."""

    def __init__(self, order: Iterable[str]) -> None:
        self.parent = {name: name for name in order}
        self.rank = {name: index for index, name in enumerate(self.parent)}

    def find(self, name: str) -> str:
        """The representative of a name's group."""
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        """Makes one group of the groups of two names."""
        first, second = sorted((self.find(a), self.find(b)), key=self.rank.__getitem__)
        self.parent[second] = first
