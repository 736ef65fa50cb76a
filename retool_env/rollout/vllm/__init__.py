"""A policy with a vLLM engine, in this process or on servers. Importing this loads no vLLM."""

from retool_env.rollout.vllm.in_process import VLLMPolicy
from retool_env.rollout.vllm.server import VLLMServerPolicy

__all__ = ["VLLMPolicy", "VLLMServerPolicy"]
