"""Which parameters of a model are trained when it goes on from another (`tune`)."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from thousandwords.core.errors import UserError


def freeze(model: nn.Module, tune: str | Sequence[str], name: str = "generator") -> None:
    """Leave only the parameters of `tune` trainable: "all", "image_head", or patterns of their names.

    The others get no gradient, so no optimizer has them: no weight decay, no moments; their average stays
    where it is. Raises UserError for a pattern that matches none.
    """
    if tune == "all":
        return
    patterns = model.image_head if tune == "image_head" else tuple(tune)
    names = [parameter for parameter, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(parameter, pattern) for parameter in names):
            close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]
            raise UserError(
                f"params.yaml: {name}.tune has {pattern!r}, which matches no parameter of this model. "
                f"One of them is called {close}"
            )
    if not patterns:
        raise UserError(f"params.yaml: {name}.tune is {tune}, which names no parameter. Set {name}.tune: all")
    for parameter, value in model.named_parameters():
        value.requires_grad_(any(fnmatchcase(parameter, pattern) for pattern in patterns))
