"""Truncates MobileStyleGAN and trains an output head for smaller images.

    python -m distill.generator --wheel random_face-2021.7.21.1-py3-none-any.whl \
        --resolution 128

The published network has an output head for 1024 px only. The new head reads the 32, 64
or 128 px features and outputs 64, 128 or 256 px images. It is initialised by least
squares; then the head and the last two levels are trained on the published generator's
images in `faces.zip` (L1, L1 of image gradients, LPIPS). The last 100 faces are held
out.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import mobilestylegan, rules
from distill import BUNDLE, WORK, faces, store
from distill.images import image_loss, likeness, save_grid
from distill.training import fit
from guide_jax.models.mobilestylegan import MobileStyleGAN
from guide_jax.models.network import fill, flat_leaves, jitted
from guide_jax.storage.network_file import load_network

HELD_OUT = 100


def cut(published: MobileStyleGAN, resolution: int) -> MobileStyleGAN:
    """Returns a published network's first levels with a newly initialised head."""
    levels = int(np.log2(resolution)) - 2
    config = published.config | {"channels": published.config["channels"][:levels]}
    network = MobileStyleGAN(**config, rngs=nnx.Rngs(0))
    old = flat_leaves(published)
    fresh = flat_leaves(network)
    kept = {path: old[path] for path in fresh if ".head." not in path}
    return fill(network, fresh | kept)


def haar(x: np.ndarray) -> np.ndarray:
    """Haar transform `[N, 2h, 2w, C]` -> `[N, h, w, 4C]`, inverse of `haar_inverse`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c)
    a, b, c_, d = x[:, :, 0, :, 0], x[:, :, 0, :, 1], x[:, :, 1, :, 0], x[:, :, 1, :, 1]
    low = a + b + c_ + d
    high = np.stack([a + b - c_ - d, a - b + c_ - d, a - b - c_ + d], axis=-1)
    bands = (low, high.reshape(n, h // 2, w // 2, 3 * c))
    return 0.5 * np.concatenate(bands, axis=-1)


def fit_head(network: MobileStyleGAN, w: jax.Array, images: np.ndarray):
    """Sets the head to the linear map that fits these images best (least squares).

    Args:
        network: changed in place.
        w: codes `[N, L, D]`, N a multiple of 8.
        images: their images `[N, H, W, 3]` in [-1, 1].
    """
    head = network.synthesis.head
    name = network.synthesis.feature_name
    read = jitted(network, lambda network, w: network.synthesis(w)[1][name])
    features = np.concatenate([np.asarray(read(part)) for part in np.split(w, 8)])
    x = features.reshape(-1, features.shape[-1])
    x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1).astype(np.float64)
    y = haar(images).reshape(-1, 12)
    solution = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)
    head.affine.weight[...] = jnp.zeros_like(head.affine.weight[...])
    head.affine.bias[...] = jnp.ones_like(head.affine.bias[...])
    head.weight[...] = jnp.asarray(solution[:-1] / head.scale, jnp.float32)
    head.bias[...] = jnp.asarray(solution[-1], jnp.float32)


def trained_leaves(network: MobileStyleGAN):
    """Returns an nnx filter that selects the head and the last two levels."""
    names = (*network.synthesis.block_names[-2:], "head")
    return lambda path, leaf: isinstance(leaf, nnx.Param) and path[0] in names


def measure(network, lpips, w: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """Returns mean PSNR (dB) and LPIPS between generated and given images."""
    synthesise = jitted(network, lambda network, w: network.synthesis(w)[0])
    generated = [synthesise(part) for part in np.split(w, len(w) // 10)]
    return likeness(lpips, images, np.clip(np.concatenate(generated), -1, 1))


def main():
    """Trains, evaluates and stores a generator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--resolution", type=int, choices=(64, 128, 256), default=128)
    parser.add_argument("--faces", type=Path, default=WORK / "faces.zip")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=BUNDLE / "mobilestylegan_128.npz")
    args = parser.parse_args()
    folder = (WORK / f"generator_{args.resolution}").absolute()
    folder.mkdir(parents=True, exist_ok=True)

    state = mobilestylegan.read(args.wheel)
    network = cut(rules.convert(state, mobilestylegan.MOBILESTYLEGAN), args.resolution)
    lpips = load_network(BUNDLE / "lpips_alex.npz")
    images = faces.to_float(faces.load(args.faces), args.resolution)
    z = faces.z_of(np.arange(len(images)))
    w = np.asarray(jitted(network.mapping, lambda m, z: m(z, psi=faces.PSI))(z))
    train_w, test_w = w[:-HELD_OUT], w[-HELD_OUT:]
    train_images, test_images = images[:-HELD_OUT], images[-HELD_OUT:]
    fit_head(network, train_w[:64], train_images[:64])
    print("least-squares head:", measure(network, lpips, test_w, test_images))

    graph, trainable, rest = nnx.split(network.synthesis, trained_leaves(network), ...)
    lpips_graph, lpips_state = nnx.split(lpips)

    def loss(trainable, statistics, frozen, batch):
        rest, lpips_state = frozen
        generated, _ = nnx.merge(graph, trainable, rest)(batch["w"])
        judge = nnx.merge(lpips_graph, lpips_state)
        total, terms = image_loss(generated, batch["images"], judge)
        return total, (statistics, terms)

    def batch_at(step):
        rows = np.random.default_rng(step).integers(len(train_w), size=args.batch)
        return {"w": train_w[rows], "images": train_images[rows]}

    trainable, _ = fit(
        loss,
        trainable,
        {},
        (rest, lpips_state),
        batch_at,
        steps=args.steps,
        learning_rate=5e-4,
        folder=folder,
    )
    network.synthesis = nnx.merge(graph, trainable, rest)
    quality = measure(network, lpips, test_w, test_images)
    print("trained:", quality)
    generated = np.asarray(network.synthesis(test_w[:8])[0])
    save_grid(folder / "held_out.png", [test_images[:8], generated])
    about = {"wheel": args.wheel.name, "steps": args.steps, "held_out": quality}
    store(args.out, network, about)


if __name__ == "__main__":
    main()
