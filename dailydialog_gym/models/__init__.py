"""Load a Hugging Face model and run it fast: packed rows, the KV cache, decoding, mixed precision, compiling."""

from dailydialog_gym.extras import need

need("torch", "transformers")

from dailydialog_gym.models.adamw_8bit import AdamW8bit
from dailydialog_gym.models.compiling import compile_agent
from dailydialog_gym.models.decoder import Decoder
from dailydialog_gym.models.graphs import GraphDecoder
from dailydialog_gym.models.packing import Packed, pack
from dailydialog_gym.models.precision import MixedPrecision

__all__ = ["AdamW8bit", "Decoder", "GraphDecoder", "MixedPrecision", "Packed", "compile_agent", "pack"]
