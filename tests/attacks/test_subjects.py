"""People whom the original generator has never seen."""

import jax
import numpy as np

from guide_jax.attacks import subjects

PEOPLE = np.random.default_rng(5).standard_normal((20, 6, 7)).astype(np.float32)


def test_half_the_people_are_mixed_from_several():
    codes = np.asarray(subjects._mixed(PEOPLE, 200, jax.random.key(0)))
    # The row of PEOPLE from which each layer comes.
    same = (codes[:, None] == PEOPLE[None]).all(axis=3)  # [N, M, L]
    assert same.any(axis=1).all()
    whole = same.all(axis=2).any(axis=1)
    assert 0.35 < whole.mean() < 0.65
    assert len(np.unique(codes[whole][:, 0], axis=0)) > 10
