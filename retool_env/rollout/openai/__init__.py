"""A policy of text: a model behind an API of OpenAI's kind."""

from retool_env.rollout.openai.policy import OpenAIPolicy, Way
from retool_env.rollout.policy import Usage

__all__ = ["OpenAIPolicy", "Usage", "Way"]
