"""Turns a checked ConfigDict into the dataclasses of `config_types.py`.

Only `main.py`, the `config` modules and `experiment/` handle ConfigDicts.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from guide_jax.config_checks import check, unknown_field
from guide_jax.config_types import (
    Attack,
    Compute,
    Config,
    Erase,
    Evaluate,
    LossWeights,
    NetworkSource,
    PairWeights,
    Parallel,
    Refine,
    Render,
    Sampling,
    Source,
    Target,
    Training,
)
from guide_jax.errors import InputError


def load_config(name: str = "demo", **changes: Any) -> Config:
    """Loads `configs/NAME.py`.

    Args:
        name: name of a module in `configs`.
        changes: values by dotted field name, as in `**{"source.seed": 3}`.

    Raises:
        InputError: the config or a field does not exist, or a setting is invalid.
    """
    module = f"configs.{name}"
    if not importlib.util.find_spec(module):
        raise InputError(f"no config {name!r} in configs/")
    fields = importlib.import_module(module).get_config()
    for field, value in changes.items():
        try:
            fields.update_from_flattened_dict({field: value})
        except KeyError as error:
            raise InputError(unknown_field(str(error), field)) from error
        except TypeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"config.{field} is {value!r}: {reason}") from error
    return read(fields)


def read(fields: ConfigDict | Config) -> Config:
    """Converts a ConfigDict and checks it.

    Args:
        fields: the fields of `configs/default.py`. A `Config` is returned unchanged.

    Raises:
        InputError: a field is unknown or missing, or its value is invalid.
    """
    if isinstance(fields, Config):
        return fields
    check(fields)
    loss, evaluate = fields.loss, fields.evaluate
    return Config(
        name=fields.name,
        cache=Path(os.path.expanduser(fields.cache)),
        overwrite=fields.overwrite,
        parallel=Parallel(**fields.parallel),
        source=_source(fields.source),
        networks={
            role: NetworkSource(place.path, tuple(place.files), place.published)
            for role, place in fields.networks.items()
        },
        target=Target(**fields.target),
        training=Training(
            steps=fields.steps,
            seed=fields.seed,
            learning_rate=fields.optimizer.learning_rate,
            weights=LossWeights(
                _pair_weights(loss.local),
                _pair_weights(loss.adjacency),
                loss.global_.weight,
            ),
            sampling=Sampling(
                loss.adjacency.count,
                loss.global_.count,
                loss.adjacency.alpha_max,
                loss.psi,
            ),
            compute=Compute(fields.compute, fields.precision, loss.lpips_resolution),
            gradient_accumulation=fields.gradient_accumulation,
            save_every=fields.save_every,
            codes_per_step=fields.source.codes_per_step,
            compat=fields.compat,
            erase=Erase(**fields.erase) if fields.method == "erase" else None,
        ),
        evaluate=Evaluate(
            **dict(evaluate.items())
            | {
                "external": tuple(evaluate.external),
                "external_folder": Path(os.path.expanduser(evaluate.external_folder)),
                "fid_real": os.path.expanduser(evaluate.fid_real),
            }
        ),
        attack=_attack(fields.attack),
        render=Render(
            **dict(fields.render.items()) | {"what": tuple(fields.render.what)}
        ),
        fields=fields.to_dict(),
    )


def _pair_weights(part: ConfigDict) -> PairWeights:
    return PairWeights(part.mse_weight, part.lpips_weight, part.id_weight, part.weight)


def _attack(attack: ConfigDict) -> Attack:
    lists = "which", "after_training", "edit_sizes", "budgets", "relearn_steps"
    fields = dict(attack.items())
    return Attack(**fields | {name: tuple(fields[name]) for name in lists})


def _source(source: ConfigDict) -> Source:
    fields = dict(source.items())
    fields["scenario"] = source.scenario or ("in_domain" if source.image else "random")
    fields["image"] = os.path.expanduser(source.image)
    fields["seeds"] = tuple(source.seeds)
    fields["refine"] = Refine(**source.refine)
    return Source(**fields)
