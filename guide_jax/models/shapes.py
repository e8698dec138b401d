"""The array type of the networks' shape annotations, which the tests check.

`Float[Array, "N H W C"]` accepts every floating dtype, including bfloat16 and float64.
The letters are the package's legend, and: I and O are a layer's input and output
channels, S is the side of a square, k that of a kernel, h and w are the sides of a
feature map. Sizes named `_` are not compared.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np

# JAX's functions accept NumPy arrays too, but many of its annotations do not.
if TYPE_CHECKING:
    Array = jax.Array
else:
    Array = jax.Array | np.ndarray
