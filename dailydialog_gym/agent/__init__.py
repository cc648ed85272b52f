"""A dialogue agent: an ordinary-text conversation in, a reply out; saved and loaded as a Hugging Face folder."""

from dailydialog_gym.extras import need

need("torch", "transformers")

from dailydialog_gym.agent.dialogue_agent import DialogueAgent, save_agent
from dailydialog_gym.agent.record import AgentRecord, agents_of, find_agent_folder

__all__ = ["AgentRecord", "DialogueAgent", "agents_of", "find_agent_folder", "save_agent"]
