"""Files of a worker elsewhere: its checkpoint, the version that it hands in, and published versions that it reads.

<job>/checkpoint/…          as a local worker leaves it; each file whole or not at all
<job>/bundle.<attempt>/     a version on its way, until it is the registry's draft
"""

import asyncio
import re
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from common_lib.exceptions import DataValidationError, NotFoundError, VersionNotFoundError
from ml_workbench_service.api.elsewhere.attempts import Attempt, AttemptDep, body_as, put_in_place, received
from ml_workbench_service.contracts.work_elsewhere import (
    FILE_NAME,
    BundleListing,
    KeptFile,
    KeptFiles,
    Publication,
    VersionListing,
)
from ml_workbench_service.jobs.durable_files import sync_folder
from ml_workbench_service.jobs.handed_in import HANDED_IN_FILE, HandedIn, hand_in, refusal_in, waits
from ml_workbench_service.learning.bundle.manifest import SIGNATURE_FILE, sync

BUNDLE = "bundle."
COMING = ".coming."
MOST_FILES = 64
MOST_CHECKPOINT_FILES = 1_024
MOST_PARTS = 5
_NAME = re.compile(FILE_NAME)

router = APIRouter()


@router.get("/checkpoint")
async def list_checkpoint(attempt: AttemptDep) -> KeptFiles:
    """What was left."""
    return KeptFiles(files=await asyncio.to_thread(_kept, attempt.folder.checkpoint))


@router.get("/checkpoint/{file:path}")
async def read_checkpoint(attempt: AttemptDep, file: str) -> FileResponse:
    """One file of it."""
    return _sent(_below(attempt.folder.checkpoint, file))


@router.put("/checkpoint/{file:path}", status_code=204)
async def leave_checkpoint(attempt: AttemptDep, file: str, request: Request) -> Response:
    """Leaves a file, in the place of the one of that name."""
    target = _below(attempt.folder.checkpoint, file)
    if not target.exists() and len(await asyncio.to_thread(_kept, attempt.folder.checkpoint)) >= MOST_CHECKPOINT_FILES:
        raise DataValidationError.at("path.file", f"a checkpoint has at most {MOST_CHECKPOINT_FILES} files")
    await _take(attempt, request, target)
    return Response(status_code=204)


@router.delete("/checkpoint/{file:path}", status_code=204)
async def clear_checkpoint(attempt: AttemptDep, file: str) -> Response:
    """Takes a file away, if it is there."""
    target = _below(attempt.folder.checkpoint, file)
    await attempt.change(lambda: target.unlink(missing_ok=True))
    return Response(status_code=204)


@router.put("/bundle/{file:path}", status_code=204)
async def send_bundle(attempt: AttemptDep, file: str, request: Request) -> Response:
    """One file of the version that is to be handed in."""
    upload = _upload(attempt)
    if upload.is_dir() and len(list(upload.iterdir())) >= 2 * MOST_FILES:
        raise DataValidationError.at("path.file", f"a version has at most {MOST_FILES} files")
    await _take(attempt, request, _below(upload, file, most_parts=1))
    return Response(status_code=204)


@router.put("/publication")
async def publish(attempt: AttemptDep, request: Request) -> Publication:
    """Hands in what was sent: the control plane verifies, signs and publishes it at its next turn."""
    handed = await body_as(request, HandedIn)
    return await attempt.change(lambda: _handed_in(attempt, handed))


@router.get("/publication")
async def show_publication(attempt: AttemptDep) -> Publication:
    """What became of it."""
    return await asyncio.to_thread(_publication, attempt)


@router.get("/versions/{model_id}")
async def list_versions(
    attempt: AttemptDep, model_id: str, version: Annotated[str | None, Query(max_length=64)] = None
) -> VersionListing:
    """Of a model that the job has to do with; of one version also whether this job has published it."""

    def look() -> VersionListing:
        registry = attempt.workbench.registry
        own = None if version is None else registry.published_by(attempt.folder.id, model_id, version)
        return VersionListing(
            versions=tuple(registry.versions(model_id)), published=None if own is None else own.model_dump(mode="json")
        )

    _check_model(attempt, model_id)
    return await asyncio.to_thread(look)


@router.get("/versions/{model_id}/{version}")
async def show_version(attempt: AttemptDep, model_id: str, version: str) -> BundleListing:
    """Its card, and what files it has."""

    def look() -> BundleListing:
        card = attempt.workbench.registry.card(model_id, version)
        folder = attempt.workbench.registry.folder(model_id, version)
        files = tuple(each for each in _kept(folder) if each.path != SIGNATURE_FILE)
        return BundleListing(card=card.model_dump(mode="json"), files=files)

    _check_model(attempt, model_id)
    return await asyncio.to_thread(look)


@router.get("/versions/{model_id}/{version}/files/{file}")
async def read_version(attempt: AttemptDep, model_id: str, version: str, file: str) -> FileResponse:
    """One of its files."""
    _check_model(attempt, model_id)
    folder = await asyncio.to_thread(attempt.workbench.registry.folder, model_id, version)
    return _sent(_below(folder, file, most_parts=1))


def sweep(folder: Path) -> None:
    """What earlier attempts sent halfway, or never handed in."""
    for left in folder.glob(f"{BUNDLE}*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in (folder / "checkpoint").rglob(f"{COMING}*"):
        left.unlink(missing_ok=True)


async def _take(attempt: Attempt, request: Request, target: Path) -> None:
    """Receives a file beside its place, and puts it there unless the attempt was followed by another meanwhile."""
    staged = target.with_name(f"{COMING}{target.name}.{secrets.token_hex(4)}")
    await received(request, staged)
    try:
        await attempt.change(lambda: put_in_place(staged, target))
    finally:
        staged.unlink(missing_ok=True)


def _handed_in(attempt: Attempt, handed: HandedIn) -> Publication:
    """Puts what was sent where the registry expects drafts; once more is nothing."""
    now = _publication(attempt)
    upload = _upload(attempt)
    if now.state == "waiting" or not upload.is_dir():
        return now
    draft = attempt.workbench.registry.draft(attempt.folder.id)
    for file in upload.iterdir():
        if not file.name.startswith(COMING):
            shutil.copyfile(file, draft / file.name)
            sync(draft / file.name)
    sync_folder(draft)
    hand_in(attempt.folder.path, handed)
    for left in attempt.folder.path.glob(f"{BUNDLE}*"):
        shutil.rmtree(left, ignore_errors=True)
    return Publication(state="waiting")


def _publication(attempt: Attempt) -> Publication:
    folder, plan = attempt.folder, attempt.folder.spec.plan
    if waits(folder.path / HANDED_IN_FILE):
        return Publication(state="waiting")
    refusal = refusal_in(folder.path)
    if refusal is not None:
        return Publication(state="refused", **refusal.model_dump())
    names = str(plan.get("model_id", "")), str(plan.get("version", ""))
    if attempt.workbench.registry.published_by(folder.id, *names) is not None:
        return Publication(state="published")
    return Publication(state="nothing", message="nothing was handed in by this attempt; start the training again")


def _upload(attempt: Attempt) -> Path:
    return attempt.folder.path / f"{BUNDLE}{attempt.number}"


def _kept(folder: Path) -> tuple[KeptFile, ...]:
    found = []
    for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
        parts = file.relative_to(folder).parts
        if file.is_file() and not file.is_symlink() and not any(part.startswith(".") for part in parts):
            found.append(KeptFile(path="/".join(parts), size=file.stat().st_size))
    return tuple(found)


def _below(folder: Path, path: str, *, most_parts: int = MOST_PARTS) -> Path:
    """A file of this folder by its path; raises DataValidationError for any other path."""
    parts = path.split("/")
    if len(parts) > most_parts or not all(_NAME.fullmatch(part) for part in parts):
        raise DataValidationError.at("path.file", "a file's path is plain names, with `/` between them")
    return folder.joinpath(*parts)


def _sent(file: Path) -> FileResponse:
    if not file.is_file():
        raise NotFoundError("there is no such file any more; ask for the list again")
    return FileResponse(file, media_type="application/octet-stream")


def _check_model(attempt: Attempt, model_id: str) -> None:
    """A job reads the model that it makes, and those that its request names: to all others its token is no key."""
    spec = attempt.folder.spec
    if model_id not in _models_in([spec.plan, spec.request.get("model_id")]):
        raise VersionNotFoundError(f"job {spec.id} has nothing to do with a model {model_id[:64]}")


def _models_in(told: Any) -> set[str]:
    """Every `model_id` in a plan."""
    if isinstance(told, str):
        return {told}
    if isinstance(told, dict):
        own = {told["model_id"]} if isinstance(told.get("model_id"), str) else set()
        return own.union(*(_models_in(each) for each in told.values() if isinstance(each, dict | list)))
    if isinstance(told, list):
        return set().union(*(_models_in(each) for each in told if isinstance(each, dict | list)))
    return set()
