"""The server through TRL's client, and what goes wrong with it said so that a person can act."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from rlhf_core.errors import ConfigError, RunError
from torch import Tensor

from .config import VLLMConfig

CLIENT = "trl.generation.vllm_client"
INSTALL = "pip install 'rlhf-plugin-vllm[vllm]' here, on a machine with an NVIDIA GPU"
EVERY = 1.0  # seconds between looks at a server that is still starting


def start_command(model: str) -> str:
    """How a server that can be sent weights is started."""
    return f"""VLLM_SERVER_DEV_MODE=1 vllm serve {model} --weight-transfer-config '{{"backend": "nccl"}}'"""


class Server:
    """A vLLM server that is up.

    Args:
        where: how messages call the engine. model: the policy's, for the command in messages.

    Raises:
        ConfigError: vLLM is not installed, or nothing healthy answers at the address in time.
    """

    def __init__(self, config: VLLMConfig, where: str, model: str) -> None:
        self.url, self.where = config.base_url.rstrip("/"), where
        self.start = f"start it with `{start_command(model)}`"
        trl: Any = importlib.import_module(CLIENT)
        if not trl.is_vllm_available():
            raise ConfigError(where, "vllm is not installed", "vLLM on both sides: it sends the weights too", INSTALL)
        self._wait(config.timeout)
        with self._told("connecting"):
            self.client: Any = trl.VLLMClient(base_url=self.url, group_port=config.group_port)

    def _wait(self, timeout: float) -> None:
        """Raises ConfigError if the server is not healthy within `timeout` seconds.

        TRL's own wait has no end where something answers that is not a vLLM server.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                status = requests.get(f"{self.url}/health", timeout=10).status_code
                got = f"{self.url}/health answers with status {status}"
            except requests.RequestException as error:
                status, got = 0, f"nothing can be reached at {self.url} ({type(error).__name__})"
            if status == requests.codes.ok:
                return
            if time.monotonic() >= end:
                raise ConfigError(f"{self.where} base_url", got, "a vLLM server", f"{self.start}, or mend base_url")
            time.sleep(EVERY)

    def send(self, weights: dict[str, Tensor], device: Any) -> None:
        """Replace the weights of the server's model by `weights`, over NCCL from `device`.

        Raises:
            ConfigError: the server was started without what this needs, or `device` is no GPU. RunError: it failed.
        """
        try:
            if self.client.communicator is None:
                self.client.init_communicator(device=device)
        except (RuntimeError, NotImplementedError) as error:  # TRL says what is missing
            raise ConfigError(self.where, f"no weights can be sent to {self.url}: {error}", fix=self.start) from error
        except Exception as error:
            raise self._failed("joining for weights", error) from error
        shapes = [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in weights.items()]
        with self._told("taking weights"):
            self.client.update_named_params(shapes, iter(weights.items()))
            self.client.reset_prefix_cache()  # what it keeps of prompts is of the weights before

    def complete(self, prompt: list[int], options: dict[str, Any], more: dict[str, Any]) -> list[int]:
        """Token ids of one response to the token ids `prompt`.

        Args:
            options: arguments of TRL's `generate`. more: those that go into the request as they are.

        Raises:
            RunError: the server refuses, breaks off, or gives another number of responses than one.
        """
        with self._told("drawing"):
            answer = self.client.generate([prompt], n=1, logprobs=None, generation_kwargs=more, **options)
            responses: list[list[int]] = answer["completion_ids"]
        if len(responses) != 1:
            raise RunError(self.where, f"{len(responses)} responses of {self.url} to one prompt", "one", self.start)
        return responses[0]

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Tell whatever goes wrong inside as a fault of the server; TRL raises bare exceptions."""
        try:
            yield
        except Exception as error:
            raise self._failed(doing, error) from error

    def _failed(self, doing: str, error: Exception) -> RunError:
        said = " ".join(str(error).split())[:300]
        return RunError(
            self.where,
            f"the server at {self.url} failed at {doing}: {type(error).__name__}: {said}",
            fix="what it logged says more",
        )
