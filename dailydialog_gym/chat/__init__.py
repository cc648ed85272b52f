"""The chat page that `chat_app.py` serves: conversations with agents, comparisons and votes."""

import os

from dailydialog_gym.extras import need

need("torch", "transformers", "gradio", "matplotlib", "tyro", extra="chat")

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
