"""A run's settings, as plain dataclasses.

`config.py` creates them. `configs/default.py` explains each field and holds
every default; its field names are used here unless noted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# The defaults of the weights and of `Compute` are neutral; see configs/default.py.
@dataclass(frozen=True)
class PairWeights:
    """Weights of the three terms that compare a pair of images, and of their sum."""

    mse: float
    lpips: float
    identity: float
    total: float = 1.0


@dataclass(frozen=True)
class LossWeights:
    """Weights of the local, adjacency and global parts of a step's loss."""

    local: PairWeights
    adjacency: PairWeights
    global_: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """How a step's random latents are drawn.

    Attributes:
        num_adjacent: N_a, the number of adjacent latents for each code.
        num_global: N_g, the number of global latents.
        alpha_max: upper bound of the adjacency offsets' lengths, which are uniform in
            [0, alpha_max).
        psi: truncation of the random latents; 1 in the paper.
    """

    num_adjacent: int
    num_global: int
    alpha_max: float
    psi: float


@dataclass(frozen=True)
class Compute:
    """Numerical settings of a training step.

    Attributes:
        dtype: dtype of the generator's and LPIPS' convolutions and of the stored
            activations; None for the parameters' dtype. Parameters, images and losses
            keep their own dtypes.
        precision: precision of matrix products and convolutions, a value that
            `jax.default_matmul_precision` accepts.
        lpips_resolution: side in pixels to which images are average-pooled before
            LPIPS, a divisor of the image's side; 0 for full resolution.
    """

    dtype: str | None = None
    precision: str = "highest"
    lpips_resolution: int = 0


@dataclass(frozen=True)
class Erase:
    """Settings of the method "erase".

    Attributes:
        rounds: how often what is left of the person is searched for, and erased.
        steps: steps of each search.
        shrinkage: of the covariance that the projections are along, relative to its
            largest eigenvalue.
        limit: least length of the replacement, in the L2 norm over `[L, D]`.
    """

    rounds: int
    steps: int
    shrinkage: float
    limit: float


@dataclass(frozen=True)
class Training:
    """Settings of one person's training.

    Attributes:
        steps: number of steps.
        seed: seed of all random draws.
        learning_rate: Adam's learning rate.
        weights: the losses' weights.
        sampling: how a step's random latents are drawn.
        compute: numerical settings of a step.
        gradient_accumulation: "auto", "always" or "never".
        save_every: steps between two checkpoints; 0 for none.
        codes_per_step: how many of a person's codes each step takes, in turn; 0 for
            all.
        compat: whether noise is drawn as in the published code.
        erase: settings of the method "erase"; None for other methods.
    """

    steps: int
    seed: int
    learning_rate: float
    weights: LossWeights
    sampling: Sampling
    compute: Compute
    gradient_accumulation: str
    save_every: int
    codes_per_step: int = 0
    compat: bool = False
    erase: Erase | None = None


@dataclass(frozen=True)
class Parallel:
    """How devices and processes share the work."""

    over: str
    devices: int
    coordinator: str
    processes: int
    process: int
    wait: float


@dataclass(frozen=True)
class Refine:
    """Settings for refining an inversion."""

    steps: int
    learning_rate: float
    id_weight: float
    prior_weight: float
    layers_weight: float


@dataclass(frozen=True)
class Source:
    """The people to forget. `scenario` is never empty here."""

    scenario: str
    image: str
    seed: int
    count: int
    seeds: tuple[int, ...]
    psi: float
    align: str
    photos_per_person: int
    held_out: int
    variants: int
    codes_per_step: int
    accept_doubt: bool
    refine: Refine


@dataclass(frozen=True)
class NetworkSource:
    """Where a network is stored, and where it is published."""

    path: str
    files: tuple[str, ...]
    published: str


@dataclass(frozen=True)
class Target:
    """How a person's target code is computed."""

    name: str
    distance: float


@dataclass(frozen=True)
class Evaluate:
    """Settings of the measures."""

    others: int
    shown: int
    seed: int
    batch: int
    align: str
    external: tuple[str, ...]
    external_folder: Path
    fid_samples: int
    fid_real: str


@dataclass(frozen=True)
class Render:
    """Settings of `--mode=render`."""

    generator: str
    what: tuple[str, ...]
    seed: int
    count: int
    frames: int
    yaw: float
    mesh_side: int
    mesh_density: float


@dataclass(frozen=True)
class Attack:
    """Settings of the attacks that try to get a forgotten person back."""

    which: tuple[str, ...]
    after_training: tuple[str, ...]
    require: int
    seed: int
    margin: float
    directions: str
    edit_sizes: tuple[float, ...]
    photos: int
    starts: int
    budgets: tuple[int, ...]
    learning_rate: float
    batch: int
    strangers: str
    strangers_count: int
    random_people: int
    relearn_steps: tuple[int, ...]


@dataclass(frozen=True)
class Config:
    """A run's settings, after all checks.

    Attributes:
        name: the run's name.
        cache: folder for compiled programs and FID statistics.
        overwrite: whether results and checkpoints of other settings may be replaced.
        parallel: how devices and processes share the work.
        source: the people to forget.
        networks: role -> where its network is stored.
        target: how each person's target code is computed.
        training: settings of each person's training.
        evaluate: settings of the measures.
        attack: settings of the attacks.
        render: settings of `--mode=render`.
        fields: all fields as nested dicts, for results and fingerprints.
    """

    name: str
    cache: Path
    overwrite: bool
    parallel: Parallel
    source: Source
    networks: Mapping[str, NetworkSource]
    target: Target
    training: Training
    evaluate: Evaluate
    attack: Attack
    render: Render
    fields: dict[str, Any]
