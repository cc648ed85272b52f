"""A dialogue agent: an ordinary-text conversation in, a reply out; saved and loaded as a Hugging Face folder."""

from dailydialog_gym.agent.dialogue_agent import DialogueAgent, save_agent

__all__ = ["DialogueAgent", "save_agent"]
