"""A vLLM server as an engine for rlhf-core; importing this imports neither torch nor trl nor vllm."""

from rlhf_core import ComponentSpec, hookimpl


@hookimpl
def rlhf_components() -> list[ComponentSpec]:
    return [
        ComponentSpec(
            kind="engine",
            name="vllm",
            factory="rlhf_plugin_vllm.engine:VLLM",
            config="rlhf_plugin_vllm.config:VLLMConfig",
            summary="a vLLM server draws; it is sent the policy's weights whenever they have changed",
        )
    ]
