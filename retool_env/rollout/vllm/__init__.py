"""A model in vLLM: in this process (`in_process`), or on servers (`server`). Importing this imports no vLLM."""

from retool_env.rollout.vllm.in_process import VLLMPolicy
from retool_env.rollout.vllm.server import VLLMServerPolicy

__all__ = ["VLLMPolicy", "VLLMServerPolicy"]
