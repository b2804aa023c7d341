"""What every rank needs, imported once in the server that ranks are forked from."""

import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import bft_ray.evaluate.run
import bft_ray.train.engine
import bft_ray.train.loop  # noqa: F401
from bft_ray.train.imports import import_deepspeed

import_deepspeed()
