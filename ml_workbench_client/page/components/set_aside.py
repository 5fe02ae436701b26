"""Set aside: versions that are not served until somebody sees to them, each with its reason and the next step."""

from collections.abc import Sequence

from ml_workbench_client.page.components.blocks import badge, card, note, row, text
from ml_workbench_service.contracts.models import SetAside


def set_aside(found: Sequence[SetAside]) -> None:
    """A card that names them; nothing where there are none."""
    if not found:
        return
    with card("Not served", aside="until somebody sees to them; all others go on", anchor="set-aside"):
        for each in found:
            with row():
                text(f"{each.model_id} {each.version}", "strong")
                badge(each.state)
            note(each.reason)
