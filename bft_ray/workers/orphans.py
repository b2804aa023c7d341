"""Placement groups whose maker is dead. The one file that uses private modules of Ray: `placement_group_table` does not say
who made a group, and the state API, which does, needs the dashboard. Tried on Ray 2.60.0.
"""

from __future__ import annotations


def free_orphans() -> None:
    """Free the resources of workers of this driver whose Ray Train controller is dead, such as after a kill.

    Ray keeps a placement group for as long as its driver lives, and the cleaner of Ray Train needs the dashboard; new
    workers would wait for ever.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]  # made at import
    from ray.runtime_context import get_runtime_context
    from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

    mine = bytes.fromhex(get_runtime_context().get_job_id())
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        is_by_an_actor = set(group.creator_actor_id) != {0xFF}  # not by the driver
        is_held = group.state != PlacementGroupTableData.PlacementGroupState.REMOVED
        if group.creator_job_id == mine and is_by_an_actor and group.creator_actor_dead and is_held:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
