"""The chat page that `chat_app.py` serves: conversations with agents, comparisons and votes."""
