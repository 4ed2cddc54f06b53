"""The operations, each declared once: shape rule, reference, gradient, lowering and cost.

Invariant: importing this package registers all of them.
"""

from retrograde.compiler.ops import (  # noqa: F401  # each registers its ops
    activation,
    attention,
    branch,
    composite,
    contract,
    create,
    cross_entropy,
    cumulative,
    elementwise,
    flash,
    index,
    logic,
    mark,
    move,
    norm,
    random,
    reduce,
    region,
    rows,
    scan,
    segments,
    sort,
    special,
    steps,
    window,
)
