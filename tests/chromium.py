"""The browser of the page's and the documentation's tests."""

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium")
browser_test = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs Chromium: apt-get install chromium"
)
