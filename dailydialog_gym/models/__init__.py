"""Load a Hugging Face model and run it fast: packed rows, the KV cache, decoding, mixed precision, compiling."""
