"""What all attacks need: the original generator, the judges, strangers, directions."""

import functools
from collections.abc import Mapping

import numpy as np

from guide_jax.attacks import codes, scoring, subjects
from guide_jax.attacks.scoring import Scorer, Scores, Seen
from guide_jax.attacks.subjects import Probes
from guide_jax.config_types import Config
from guide_jax.console import Console
from guide_jax.latents import LatentFinder
from guide_jax.metrics.judges import Judge
from guide_jax.models.generator import Generator, ImagePass, mean_style
from guide_jax.storage import fingerprint
from guide_jax.storage.locate import Networks, locate

PEOPLE = 100  # random people from whom attacks start and thresholds are computed


class AttackContext:
    """What attacks share; programs are compiled once for all people.

    Attributes:
        settings: of the attacks.
        networks: the run's networks.
        latents: draws random people.
        console: prints lines and progress bars.
        generator: the original generator.
        w_avg: its mean code `[D]`.
        scorer: compares images by all judges.
        images: makes images of codes.
        directions: name -> direction `[D]` or `[L, D]`; empty without any.
        strangers: people whom the original has never seen; None without any.
    """

    def __init__(
        self,
        config: Config,
        networks: Networks,
        latents: LatentFinder,
        judges: Mapping[str, Judge],
        console: Console,
    ):
        """Prepares the attacks; see `battery.Attacker`."""
        self.settings, self.networks, self.latents = config.attack, networks, latents
        self.console = console
        self.generator: Generator = networks["generator"]
        self.w_avg = mean_style(self.generator)
        self.scorer = Scorer(judges)
        self.images = ImagePass(self.generator, config.evaluate.batch)
        self.directions: dict[str, np.ndarray] = {}
        if self.settings.directions:
            self.directions = codes.read_directions(
                locate(self.settings.directions),
                self.generator.num_ws,
                self.generator.w_dim,
            )
        # Now, so that a mistake is found before any training.
        self.strangers = subjects.find_strangers(
            self.settings,
            latents,
            self.generator.resolution,
            config.source.psi,
            self.directions,
        )
        if self.strangers and not self.strangers.generated:
            console.say(f"never-seen people: {self.strangers.described}")

    @functools.cached_property
    def inputs(self) -> dict[str, str]:
        """Path -> SHA-256 of the files that only attacks need."""
        files = list(self.strangers.files) if self.strangers else []
        if self.settings.directions:
            files.append(locate(self.settings.directions))
        return {str(path): fingerprint.of_path(path) for path in files}

    @property
    def has_encoder(self) -> bool:
        """Whether the attacker has an inversion encoder."""
        return self.latents.prior is not None

    @property
    def resolution(self) -> int:
        """Side in pixels of the detail in the person's and the strangers' photos."""
        if self.strangers:
            return self.strangers.resolution
        return self.generator.resolution

    @functools.cached_property
    def people(self) -> np.ndarray:
        """Random people `[PEOPLE, L, D]`."""
        return self.latents.random(self.settings.seed, PEOPLE)

    @functools.cached_property
    def seen_people(self) -> tuple[Seen, np.ndarray]:
        """Embeddings and images of these people, by the original generator."""
        images = self.images(self.generator, self.people)
        return self.scorer.see(images), images

    @functools.cached_property
    def thresholds(self) -> dict[str, scoring.Threshold]:
        """The judges' thresholds on generated faces."""
        return scoring.thresholds(self.scorer, *self.seen_people)

    @functools.cached_property
    def photographed_strangers(self) -> Probes:
        """A photograph of each stranger."""
        assert self.strangers is not None
        pairs = zip(self.strangers.images, self.strangers.faces, strict=True)
        parts = [
            subjects.photographs(shown[None], face, 1, self.resolution, i)
            for i, (shown, face) in enumerate(pairs)
        ]
        return Probes(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def both(self, unlearned: Generator) -> dict[str, Generator]:
        """Returns the generators that are attacked, by group."""
        return {"original": self.generator, "unlearned": unlearned}

    def encoded(self, photos: np.ndarray) -> np.ndarray:
        """Returns the encoder's codes of photos; the mean code without an encoder."""
        if not self.has_encoder:
            shape = (len(photos), self.generator.num_ws, self.generator.w_dim)
            return np.broadcast_to(self.w_avg, shape)
        return self.latents.encode(photos)

    def show(self, generator: Generator, w: np.ndarray, faces: np.ndarray) -> Scores:
        """Returns the similarity of each code's image and its face."""
        made = self.scorer.see(self.images(generator, w))
        return scoring.paired(made, self.scorer.see(faces))
