"""A model behind an API of OpenAI's kind, as text."""

from retool_env.rollout.openai.policy import OpenAIPolicy, Usage, Way

__all__ = ["OpenAIPolicy", "Usage", "Way"]
