"""The choices of a row as a tree of tokens: what several choices begin with is read, and predicted from, once.

Shapes: M nodes of a tree, Q paths, T nodes of the longest path, F tokens of all choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ChoiceTree:
    """
    The beginnings that a model has to read to score the choices of a row, each of them once.

    A node is a token that is read after the prompt, under the tokens before it. The last token of a choice is only
    predicted, so that choices of one token have no nodes. Nodes are numbered from 1, each branch before the next one;
    0 is the end of the prompt. A model gives M + 1 rows of logits, one for each number in this order.

    Args:
        choices (`tuple[tuple[int, ...], ...]`): the token ids of each choice, at least one each.
        tokens (`tuple[int, ...]`): of the nodes, `[M]`.
        parents (`tuple[int, ...]`): the number of what comes before each node, `[M]`.
        sources (`tuple[tuple[int, ...], ...]`): for each token of each choice the number of what predicts it.
    """

    choices: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """M + 1."""
        return len(self.tokens) + 1

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The nodes down to each node that ends a branch, in the order of their numbers; one path without nodes."""
        if not self.tokens:
            return ((),)
        ends = {*range(1, self.rows)} - {*self.parents}
        paths = []
        for end in sorted(ends):
            path, node = [], end
            while node:
                path.append(node)
                node = self.parents[node - 1]
            paths.append(tuple(reversed(path)))
        return tuple(paths)

    @cached_property
    def token_M(self) -> Tensor:
        return torch.tensor(self.tokens, dtype=torch.long)

    @cached_property
    def seen_MM(self) -> Tensor:
        """Which nodes each node follows, itself among them."""
        seen_MM = torch.eye(len(self.tokens), dtype=torch.bool)
        for m, parent in enumerate(self.parents):
            if parent:
                seen_MM[m] |= seen_MM[parent - 1]
        return seen_MM

    @cached_property
    def path_QT(self) -> Tensor:
        """The numbers of the nodes of each path, 0 beyond its end."""
        longest = max(map(len, self.paths))
        return torch.tensor([[*path, *[0] * (longest - len(path))] for path in self.paths], dtype=torch.long)

    @cached_property
    def new_QT(self) -> Tensor:
        """Where a path has a node that no path before it has."""
        before_Q = torch.tensor([0, *(path[-1] for path in self.paths[:-1])])
        return self.path_QT > before_Q[:, None]

    @cached_property
    def predicted_F(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each token of each choice: the number of what predicts it, the token, and the choice."""
        sources = [source for sources in self.sources for source in sources]
        tokens = [token for choice in self.choices for token in choice]
        numbers = [c for c, choice in enumerate(self.choices) for _ in choice]
        return torch.tensor(sources), torch.tensor(tokens), torch.tensor(numbers)

    def ending(self) -> list[tuple[int, ...]]:
        """A choice that goes along each path."""
        along = {(sources[-1] if sources else 0): c for c, sources in enumerate(self.sources)}
        return [self.choices[along[path[-1] if path else 0]] for path in self.paths]

    def pieces(self, most: int) -> "list[tuple[ChoiceTree, list[int]]]":
        """
        Trees of some of the choices each, and which choices those are.

        Args:
            most (`int`): nodes of a tree, but for a tree of one choice, which may be longer.
        """
        if len(self.tokens) <= most:
            return [(self, [*range(len(self.choices))])]
        groups: list[list[int]] = []
        nodes: set[tuple[int, ...]] = set()
        # In this order choices of one branch follow each other.
        for c in sorted(range(len(self.choices)), key=self.choices.__getitem__):
            beginnings = {self.choices[c][:n] for n in range(1, len(self.choices[c]))}
            if not groups or len(nodes | beginnings) > most:
                groups.append([])
                nodes = set()
            groups[-1].append(c)
            nodes |= beginnings
        return [(choice_tree(tuple(self.choices[c] for c in group)), group) for group in groups]


# A set of choices may belong to a whole task, while choices of their own belong to one row, in each evaluation again.
@lru_cache(maxsize=4096)
def choice_tree(choices: tuple[tuple[int, ...], ...]) -> ChoiceTree:
    """The tree of these choices, made once."""
    numbers: dict[tuple[int, ...], int] = {(): 0}
    tokens, parents = [], []
    for beginning in sorted({choice[:-1] for choice in choices}):
        for n in range(1, len(beginning) + 1):
            if beginning[:n] not in numbers:
                numbers[beginning[:n]] = len(numbers)
                tokens.append(beginning[n - 1])
                parents.append(numbers[beginning[: n - 1]])
    sources = tuple(tuple(numbers[choice[:n]] for n in range(len(choice))) for choice in choices)
    return ChoiceTree(choices, tuple(tokens), tuple(parents), sources)


def stacked(parts: Sequence[Tensor], fill: int | bool, *shape: int) -> Tensor:
    """One tensor `[len(parts), *shape]` of parts of at most this shape, filled up at their ends."""
    whole = torch.full((len(parts), *shape), fill, dtype=parts[0].dtype)
    for place, part in zip(whole, parts, strict=True):
        place[tuple(slice(n) for n in part.shape)] = part
    return whole
