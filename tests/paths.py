"""Paths of the checkout, and of the full DailyDialog data next to it, which only some machines have."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
DAILYDIALOG = SHARED / "dailydialog"
GPT2_TOKENIZER = SHARED / "gpt2-tokenizer"

needs_dailydialog = pytest.mark.skipif(not DAILYDIALOG.exists(), reason="needs ../shared/data/dailydialog")
needs_gpt2_tokenizer = pytest.mark.skipif(not GPT2_TOKENIZER.exists(), reason="needs ../shared/data/gpt2-tokenizer")
