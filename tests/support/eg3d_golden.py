"""EG3D's golden fixtures as its published file has them."""

from golden_data import Golden


def contents(golden: Golden) -> dict:
    """Returns all that conversion reads: tensors by name, and rendering settings."""
    arguments = golden.info["init_kwargs"]
    return golden.weights() | {
        "rendering_kwargs": arguments["rendering_kwargs"],
        "_init_kwargs": arguments,
        "neural_rendering_resolution": golden.info["neural_rendering_resolution"],
    }
