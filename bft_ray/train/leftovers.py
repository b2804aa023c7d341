"""What an engine leaves in DeepSpeed's modules when it is destroyed, and what is done about it between trials of one process.

The one file that names private parts of DeepSpeed. Tried on 0.19.8.
"""

from __future__ import annotations


def free_leftovers() -> None:
    """Drop DeepSpeed's own references to a destroyed engine: under ZeRO-3 each trial would leave a model and its optimizer.

    No other engine may be in use in this process.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    # modules whose forward pass has begun; the outermost stays in it for ever
    parameter_offload.FWD_MODULE_STACK.clear()
    # what to release after each module and step: a cache for the whole process, within a decorator that does not name it
    wrapped = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    for cell in wrapped.__closure__:
        cell.cell_contents.cache_clear()
