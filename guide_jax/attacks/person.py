"""The person who is attacked, as far as attackers and judges know the person."""

from typing import NamedTuple

import numpy as np

from guide_jax.attacks import codes as near
from guide_jax.attacks import subjects
from guide_jax.attacks.context import AttackContext
from guide_jax.attacks.scoring import Seen
from guide_jax.attacks.subjects import Probes
from guide_jax.attacks.verdict import GENERATED, PHOTOS
from guide_jax.latents import Codes

MOST_CODES = 4  # of a person's codes that are replayed, edited and searched around
COPIES = 8  # photographs of a person without other photos


class AttackedPerson(NamedTuple):
    """A person.

    Attributes:
        codes: the person's codes `[P, L, D]`.
        other_codes: the original's codes of other photos, `[T, L, D]`.
        references: "generated" and, if there are photos, "photos": embeddings of what
            the person looks like.
        probes: photos that the attacker holds.
        strangers: a photo of each stranger, treated as the person's photos are; None
            without comparable strangers.
        altered: whether these photos are altered copies.
    """

    codes: np.ndarray
    other_codes: np.ndarray
    references: dict[str, Seen]
    probes: Probes
    strangers: Probes | None
    altered: bool


def describe(
    context: AttackContext, codes: Codes, photos: np.ndarray, tests: np.ndarray
) -> AttackedPerson:
    """Collects what is known of a person.

    Args:
        context: what attacks share.
        codes: the person's codes.
        photos: photos from which the person was forgotten, `[n, H, W, 3]`; none for a
            sampled person.
        tests: other photos of the person. Without any, attackers hold photographs of
            the first photo, or of a sampled person's edited images.
    """
    own = codes.w_u[: max(1, len(photos))][:MOST_CODES]
    made = context.images(context.generator, own)
    references = {GENERATED: context.scorer.see(made)}
    if len(photos):
        references[PHOTOS] = context.scorer.see(np.concatenate([photos, tests]))
    strangers = context.strangers
    if strangers and strangers.generated and len(photos):
        strangers = None  # generated faces are easier to find than photos
    if len(tests):
        held = Probes(strangers.images, strangers.faces) if strangers else None
        probes = Probes(tests, tests)
        return AttackedPerson(own, codes.tests, references, probes, held, False)
    shown = photos[:1] if len(photos) else _edited(context, own[:1])
    face = photos[0] if len(photos) else made[0]
    probes = subjects.photographs(
        shown, face, COPIES, context.resolution, context.settings.seed
    )
    held = context.photographed_strangers if strangers else None
    return AttackedPerson(own, codes.tests, references, probes, held, True)


def _edited(context: AttackContext, w: np.ndarray) -> np.ndarray:
    """Returns images of a code's edits, or of the code if there are no directions."""
    edits = near.edits(w, context.directions, context.settings.edit_sizes)
    return context.images(context.generator, edits if len(edits) else w)
