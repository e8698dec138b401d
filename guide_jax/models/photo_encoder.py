"""The base class of the inversion encoders."""

from collections.abc import Sequence

from flax import nnx


class PhotoEncoder(nnx.Module):
    """Maps face photos `[N, H, W, 3]` to codes `[N, L, D]`.

    Attributes:
        config: the constructor's arguments; JSON types, except for tuples.
    """

    def __init__(
        self,
        num_ws: int,
        w_dim: int,
        input_size: int,
        units: Sequence[int],
        widths: Sequence[int],
    ):
        self.num_ws, self.w_dim, self.input_size = num_ws, w_dim, input_size
        self.units, self.widths = tuple(units), tuple(widths)

    @property
    def config(self) -> dict:
        """The constructor's arguments."""
        return {
            "num_ws": self.num_ws,
            "w_dim": self.w_dim,
            "input_size": self.input_size,
            "units": self.units,
            "widths": self.widths,
        }
