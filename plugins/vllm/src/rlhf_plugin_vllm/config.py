"""Configuration of the engine; importing it imports neither torch nor trl nor vllm."""

from __future__ import annotations

from pydantic import Field
from rlhf_core.interfaces import Config


class VLLMConfig(Config):
    """Where the vLLM server is."""

    base_url: str = Field(
        default="http://127.0.0.1:8000", pattern="^https?://[^/]", description="address of the vLLM server"
    )
    group_port: int = Field(
        default=51216, ge=1, le=65535, description="port of this machine that the server fetches weights from"
    )
    timeout: float = Field(default=60.0, ge=0, description="seconds to wait for a server that is still starting")
