"""`/model-types` and `/features`: what can be trained, and on what."""

import asyncio

from fastapi import APIRouter

from ml_workbench_service import __version__, families  # loading the package registers every family
from ml_workbench_service.api.app_state import AppStateDep
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.market_data import FeatureList
from ml_workbench_service.contracts.models import FamilyDescription, ModelTypeDescription, ModelTypeList
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import families_of
from ml_workbench_service.market.features.expressions.catalogue import described_functions, described_sets

PACKAGE = f"ml-workbench-service=={__version__}"
router = APIRouter(tags=["catalogue"])


@router.get("/model-types", summary="What can be trained", responses=failures())
async def list_model_types() -> ModelTypeList:
    """The five types; for each its installed families, with their hyper-parameters as JSON Schema."""
    return ModelTypeList(
        model_types=tuple(
            ModelTypeDescription(
                model_type=model_type.value,
                families=tuple(
                    FamilyDescription(
                        name=family.name,
                        is_default=family.is_default,
                        package=families.plugins.packages.get(family.name, PACKAGE),
                        summary=(family.__doc__ or "").strip().splitlines()[0],
                        hyperparameters=family.Hyperparameters.model_json_schema(),
                        explains_answers=family.explains_answers,
                    )
                    for family in families_of(model_type)
                ),
            )
            for model_type in ModelType
        )
    )


@router.get("/features", summary="What can be read", responses=failures(502, 504))
async def list_features(service: AppStateDep) -> FeatureList:
    """Feature names that the feature store can serve, with their parameters; the functions that expressions over them
    are written with, and the sets that ship by name."""
    described = await asyncio.to_thread(service.workbench.feature_store.describe)
    return FeatureList(features=tuple(described), functions=described_functions(), sets=described_sets())
