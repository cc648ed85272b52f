"""The chat page that `chat_app.py` serves: conversations with agents, comparisons and votes."""

from dailydialog_gym.extras import need

need("torch", "transformers", "gradio", "matplotlib", "tyro", extra="chat")
