"""`/audit`: who changed what, newest first, for admins."""

import asyncio

from fastapi import APIRouter

from ml_workbench_service.access.audit_log import AuditLog
from ml_workbench_service.api.app_state import AppStateDep
from ml_workbench_service.api.pages import Cursor, Limit, cursor_of, number_of
from ml_workbench_service.contracts.audit import AuditList
from ml_workbench_service.contracts.errors import failures

router = APIRouter(tags=["audit"])


@router.get("/audit", summary="Who changed what", responses=failures(503))
async def list_audit(service: AppStateDep, limit: Limit = 50, cursor: Cursor = None) -> AuditList:
    """Newest first, as a chain of hashes: `ml-workbench audit verify` reads all of it, and `head`, noted elsewhere,
    proves to it later that nothing was taken away. Needs the scope `admin`.
    """
    return await asyncio.to_thread(_page, service.audit, limit, cursor)


def _page(audit: AuditLog, limit: int, cursor: str | None) -> AuditList:
    found = audit.newest(num=limit + 1, before=number_of(cursor))
    following = cursor_of(str(found[limit - 1].number)) if len(found) > limit else None
    return AuditList(audit=found[:limit], head=audit.head(), next_cursor=following)
