"""Primaries of meta-labelling: which versions can give a side, and from when on their word is no memory.

A version was fitted up to the border of its test part: by training, early stopping and calibration. What it says of
those rows it has seen the answers to. A follower is trained on what came later alone: earlier rows that are asked for
are left out, labels were purged at that border, and no window reaches back over it.
"""

from collections.abc import Mapping
from typing import Any

from common_lib.exceptions import BundleDamagedError, DataValidationError, NotFoundError
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import SIDED, ModelType, PrimaryReference, TrainRequest, parse_target
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.learning.networks.followed.estimates import FollowerEstimate
from ml_workbench_service.learning.networks.followed.primary import PublishedPrimary
from ml_workbench_service.market.features.derivation import Derivation

PATH = "body.meta.primary"


def primary_of(request: TrainRequest, registry: FolderModelRegistry) -> PrimaryReference | None:
    """The version that the request follows, pinned; None where it follows none, or its type could not.

    Raises:
        DataValidationError: there is no such version, it gives no side, or it was fitted on all of the range.
    """
    if request.meta is None or request.model_type is not ModelType.CLASSIFICATION:
        return None
    model_id, version = request.meta.parts
    card, recipe, digest = _published(registry, model_id, version)
    name = request.meta.primary
    _check_gives_sides(card, recipe, name)
    _check_same_bars(card, request, name)
    fitted_until = card.split.borders.get("test")
    if fitted_until is None:
        raise _refused(f"the card of {name} does not say where its test part begins; train it again")
    if request.end_date <= fitted_until:
        raise DataValidationError.at(
            "body.end_date",
            f"{name} was fitted on rows known until {fitted_until.isoformat()}, and a follower learns from what came "
            "later alone; send a later `end_date`, or name a primary whose test part begins earlier",
            code="primary_saw_range",
        )
    reference = PrimaryReference(
        model_id=model_id, version=version, digest=digest, target=str(card.target),
        timeframe=card.timeframe, fitted_until=fitted_until, reads=(), is_clipped=request.start_date < fitted_until,
    )  # fmt: skip
    if request.target not in (None, reference.follow_target, [reference.follow_target]):
        raise DataValidationError.at(
            "body.target", f"a follower of {name} learns whether its side pays; leave `target` out, or send "
            f"{reference.follow_target}",
        )  # fmt: skip
    return reference


def with_the_primarys(
    own: Derivation, registry: FolderModelRegistry, reference: PrimaryReference
) -> tuple[Derivation, PrimaryReference]:
    """The features of the request, and behind them those that only the primary reads; and which the classifier reads.

    Args:
        own: without any the classifier reads the primary's.

    Raises:
        DataValidationError: a name means one thing here and another to the primary.
    """
    card = registry.card(reference.model_id, reference.version)
    for name in set(own.features) & set(card.features):
        if own.expressions.get(name) != card.expressions.get(name):
            raise DataValidationError.at(
                "body.features", f"{name} is evaluated otherwise than {card.id} {card.version} does; write it as the "
                "primary's card has it",
            )  # fmt: skip
    more = {name: text for name, text in card.expressions.items() if name in card.features}
    names = tuple(dict.fromkeys((*own.features, *card.features)))
    joined = Derivation(names, {**own.expressions, **more}, own.selected_until_ms)
    return joined, reference.model_copy(update={"reads": own.features or card.features})


def estimate_of(registry: FolderModelRegistry, reference: PrimaryReference) -> FollowerEstimate:
    """What following this version takes; its `card` says how many rows it reads at once."""
    return FollowerEstimate.of(registry.card(reference.model_id, reference.version), reference)


def opened_primary(plan: Mapping[str, Any], registry: FolderModelRegistry) -> PublishedPrimary | None:
    """The version that a job's plan pins, verified and opened; None where it pins none.

    Raises:
        BundleDamagedError, VersionNotFoundError: it is not there any more, or not what it was.
    """
    if "primary" not in plan:
        return None
    reference = PrimaryReference.model_validate(plan["primary"])
    name = (reference.model_id, reference.version)
    return PublishedPrimary.load(registry.folder(*name), registry.card(*name), reference)


def _published(registry: FolderModelRegistry, model_id: str, version: str) -> tuple[ModelCard, dict[str, Any], str]:
    """Card, recipe and digest."""
    try:
        return (
            registry.card(model_id, version),
            registry.recipe(model_id, version),
            registry.verify(model_id, version),
        )
    except (NotFoundError, BundleDamagedError) as error:
        raise _refused(f"{error.message}; a follower needs a sound version to follow") from error


def _check_gives_sides(card: ModelCard, recipe: dict[str, Any], name: str) -> None:
    """Raises DataValidationError where a version states no direction by itself."""
    if card.status == "archived":
        raise _refused(f"{name} is archived; restore it, or name another version")
    if card.certificate is not None and card.certificate.status == "failed":
        raise _refused(
            f"{name} failed its search for leaks: what it says of a row may know the future; train it without the leak"
        )
    if card.type not in (ModelType.TIME_SERIES, ModelType.CLASSIFICATION) or card.target is None:
        raise _refused(f"{name} is of type {card.type}, which states no side by itself; name a forecast or classifier")
    if card.primary is not None:
        raise _refused(f"{name} follows a primary itself; name {card.primary.model_id}@{card.primary.version}")
    if len(card.targets) > 1:
        raise _refused(f"{name} forecasts several targets; name a version of one")
    target = parse_target(card.target)
    if target.measure not in SIDED or not _is_traded(card):
        raise _refused(
            f"{name} forecasts {card.target}, of which no position earns anything; name a version of price_change, "
            "log_return, direction or triple_barrier that is labelled from the fill"
        )
    if (recipe.get("uncertainty") or {}).get("sizing") is not None:
        raise _refused(f"{name} sizes its positions by a rule of its own, and a follower takes whole sides; name a "
                       "version without `position`")  # fmt: skip


def _is_traded(card: ModelCard) -> bool:
    target = parse_target(str(card.target)).model_copy(update={"delay": int(card.label_start == "fill")})
    return target.is_traded(card.fill or "next_open")


def _check_same_bars(card: ModelCard, request: TrainRequest, name: str) -> None:
    """Raises DataValidationError where the primary knows other symbols, or bars of another length."""
    strange = sorted(set(request.symbols) - set(card.symbols))
    if strange:
        raise DataValidationError.at(
            "body.symbols", f"{name} knows {', '.join(card.symbols)} and not {', '.join(strange)}; leave those out"
        )
    if request.timeframe not in (None, card.timeframe):
        raise DataValidationError.at("body.timeframe", f"{name} reads bars of {card.timeframe}; leave `timeframe` out")


def _refused(message: str) -> DataValidationError:
    return DataValidationError.at(PATH, message)
