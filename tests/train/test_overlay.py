"""What DeepSpeed would refuse on the workers is refused on the driver, by the name that the user wrote."""

from __future__ import annotations

import pytest

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.operate.configured import check_settings
from bft_ray.train.overlay import check_overlay


@pytest.mark.parametrize(
    ("overlay", "field", "value"),
    [
        ({"zero_optimization": {"stge": 9}}, "zero_optimization.stge", 9),
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, "zero_optimization.reduce_bucket_size", "many"),
        ({"comms_logger": {"enabled": 7}}, "comms_logger.enabled", 7),
        (
            {"zero_optimization": {"offload_param": {"device": "moon"}}},
            "zero_optimization.offload_param.device",
            "moon",
        ),
    ],
)
def test_a_wrong_setting_is_named_as_it_was_written(make_tree, overlay, field, value):
    config = make_config(make_tree(deepspeed={"preset": "zero1", "overlay": overlay}))
    with pytest.raises(BadInput, match="what DeepSpeed accepts: ") as caught:
        check_overlay(config)
    assert (caught.value.field, caught.value.value) == (f"deepspeed.overlay.{field}", value) and caught.value.remedy
    with pytest.raises(BadInput):
        list(check_settings(config))


def test_what_trips_deepspeed_itself(make_tree):
    with pytest.raises(BadInput, match=r"`deepspeed.overlay` is .* what DeepSpeed accepts: "):
        check_overlay(make_config(make_tree(deepspeed={"overlay": {"zero_optimization": 3}})))


def test_right_settings_pass(make_tree):
    overlay = {"zero_optimization": {"reduce_bucket_size": 1000}, "wall_clock_breakdown": True}
    check_overlay(make_config(make_tree(deepspeed={"preset": "zero3", "overlay": overlay})))


def test_a_section_that_deepspeed_never_reads_is_refused(make_tree):
    """DeepSpeed itself leaves it out without a word."""
    with pytest.raises(BadInput, match="a section that DeepSpeed reads") as caught:
        check_overlay(make_config(make_tree(deepspeed={"overlay": {"zero_optimisation": {"reduce_bucket_size": 1}}})))
    assert caught.value.field == "deepspeed.overlay.zero_optimisation"
    assert caught.value.remedy.startswith("Did you mean `zero_optimization`?")
    with pytest.raises(BadInput, match="a section that DeepSpeed reads") as caught:
        check_overlay(make_config(make_tree(deepspeed={"overlay": {"foo": 1}})))
    assert "Did you mean" not in caught.value.remedy
    known = {"activation_checkpointing": {}, "flops_profiler": {"enabled": False}, "communication_data_type": "fp32"}
    check_overlay(make_config(make_tree(deepspeed={"overlay": known})))
