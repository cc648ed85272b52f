"""The chat page: conversations with agents, their votes, and the page that `chat_app.py` serves."""
