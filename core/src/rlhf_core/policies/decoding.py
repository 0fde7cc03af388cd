"""The built-in engines: tokens are drawn one by one over the model's cache, and what is known of them is kept.

A row that is done leaves the batch. With `refill` its place goes to the next prompt, so that no more rows than there
are slots take memory at a time; with `compaction`, and once no prompt is waiting, the batch shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..interfaces import Drawn, Generator, Policy, Sampling
from ..randomness import uniforms
from .config import CompactionConfig, DecodingConfig, RefillConfig
from .decoders import CacheDecoder, Decoder, opened
from .drawing import draw, restrict
from .graphs import Graphs
from .llama import LlamaDecoder, decodes
from .network import PolicyNetwork
from .text import Codec

LOOK_EVERY = {"cpu": 1, "cuda": 8}  # steps between looks at which rows are done: a GPU has to be waited for


D = TypeVar("D", bound=DecodingConfig)


class Decoding(Generator[D]):
    """What both engines do; the token at position t of sample b is drawn with the number (seed, sample_ids[b], t)."""

    @property
    def slots(self) -> int | None:
        """Most rows at a time; None: as many as there are prompts."""
        return None

    @torch.no_grad()
    def draw(
        self,
        policy: Policy[Any],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        sample_ids: Sequence[int],
    ) -> Drawn:
        network, codec = opened(policy, self.context.where)
        device = next(network.parameters()).device
        numbers = torch.from_numpy(
            uniforms(seed, np.asarray(sample_ids, dtype=np.int64), np.arange(sampling.max_new_tokens, dtype=np.int64))
        ).to(device)  # (B, T) float64
        with network.speaking(network.role):
            decoder = make_decoder(network, codec.pad, device, graphs=self.config.cuda_graphs)
            with torch.inference_mode() if decoder.pure else nullcontext():
                slots = self.slots or len(prompts)
                drawn = decode(decoder, network, codec, prompts, sampling, numbers, slots)
        tables: dict[str, Any] = {name: None if t is None else t.clone() for name, t in vars(drawn).items()}
        return Drawn(**tables)  # clones: an update may need gradients of what it makes of them


class Compaction(Decoding[CompactionConfig]):
    """All rows at once; those that are done leave."""


class Refill(Decoding[RefillConfig]):
    """So many rows at once; the place of one that is done goes to the next prompt."""

    @property
    def slots(self) -> int:
        return self.config.slots


def make_decoder(network: PolicyNetwork, pad: int, device: torch.device, *, graphs: bool = False) -> Decoder:
    """The fastest decoder for `network`, in the precision that forward passes have here and now; `graphs`: with CUDA
    graphs, where there is CUDA."""
    if not decodes(network):
        return CacheDecoder(network, pad, str(device))
    weights: torch.dtype = network.model.get_input_embeddings().weight.dtype
    mixed = torch.is_autocast_enabled(device.type) and weights == torch.float32
    dtype = torch.get_autocast_dtype(device.type) if mixed else weights
    return LlamaDecoder(network, pad, dtype, Graphs if graphs and device.type == "cuda" else None)


def decode(
    decoder: Decoder,
    network: PolicyNetwork,
    codec: Codec,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    numbers: Tensor,
    slots: int,
) -> Drawn:
    """Draw one response to each of the B `prompts`, at most `slots` rows at a time.

    Args:
        network: whose heads steer, and value the states. numbers: (B, T) float64 in [0, 1), one for each token.
    """
    device, (total, longest) = numbers.device, numbers.shape
    ids = torch.full((total, longest), codec.pad, dtype=torch.long, device=device)
    logprobs = torch.zeros(total, longest, device=device)
    behaviour = torch.zeros(total, longest, device=device) if sampling.truncates else None
    head = network.value_head if network.critic == "shared" else None
    values = None if head is None else torch.zeros(total, longest, device=device, dtype=head.weight.dtype)
    lengths = torch.zeros(total, dtype=torch.long, device=device)
    ended = torch.zeros(total, dtype=torch.bool, device=device)

    nobody = torch.zeros(0, dtype=torch.long, device=device)
    live, age, done = nobody, nobody, nobody.bool()  # (n,) the row's sample, how many tokens it has, whether it is done
    logits = states = None
    waiting, steps, begun = 0, 0, 0
    every = 1 if sampling.stop else LOOK_EVERY.get(device.type, LOOK_EVERY["cuda"])
    while waiting < total or len(live):
        room = min(slots - len(live), total - waiting)
        if room and (not len(live) or (decoder.refills and room >= min(slots // 8 + 1, total - waiting))):
            fresh = decoder.add(prompts[waiting : waiting + room])
            if logits is None or states is None:
                logits, states = fresh
            else:
                logits, states = torch.cat([logits, fresh[0]]), torch.cat([states, fresh[1]])
            live = torch.cat([live, torch.arange(waiting, waiting + room, device=device)])
            age = torch.cat([age, age.new_zeros(room)])
            done = torch.cat([done, done.new_zeros(room)])
            begun = begun if len(live) > room else steps
            waiting += room
        assert logits is not None and states is not None
        steered = network.steered(logits, states) if network.steering else logits
        token, logprob, drawn = _next(steered, sampling, numbers[live, age], codec.eos, age)
        written = [(ids, token), (logprobs, logprob), (behaviour, drawn)]
        if values is not None:
            written.append((values, network.values(states)))
        for table, column in written:
            if table is not None:  # what is done stays as it is; no index by mask, which a GPU would have to wait for
                table[live, age] = torch.where(done, table[live, age], column.to(table.dtype))
        lengths[live] = torch.where(done, lengths[live], age + 1)
        ended[live] = torch.where(done, ended[live], token == codec.eos)
        if sampling.stop:
            _mark_stopped(ended, ids, live[~done], age[~done], sampling.stop, codec)
        done = done | ended[live] | (age + 1 == longest)
        age = torch.where(done, age, age + 1)
        steps += 1
        if steps % every == 0 or steps - begun == longest:
            # a batch that will be filled up again has no reason to wait
            full = decoder.refills and waiting < total
            rows = _remaining(done, min(decoder.patience, 1 / 8) if full else decoder.patience)
            if rows is not None:
                decoder.keep(rows)
                live, age, done, token = live[rows], age[rows], done[rows], token[rows]
        logits, states = decoder.step(token) if len(live) else (None, None)
    width = int(lengths.max()) if total else 1
    attention = torch.arange(width, device=device) < lengths[:, None]
    return Drawn(
        ids=ids[:, :width],
        attention=attention,
        truncated=~ended,
        logprobs=logprobs[:, :width],
        behaviour=None if behaviour is None else behaviour[:, :width],
        values=None if values is None else values[:, :width],
    )


def _remaining(done: Tensor, patience: float) -> Tensor | None:
    """The rows (n,) that go on once those that are done leave: in their place, with the last ones in the gaps.

    None while fewer than the share `patience` of them are done.
    """
    gone = done.tolist()
    count = sum(gone)
    if not count or (count < len(gone) and count < patience * len(gone)):
        return None
    left = len(gone) - count
    order = list(range(left))
    gaps = [row for row in order if gone[row]]
    for gap, last in zip(gaps, (row for row in range(left, len(gone)) if not gone[row]), strict=True):
        order[gap] = last
    return torch.tensor(order, dtype=torch.long, device=done.device)


def _next(logits: Tensor, sampling: Sampling, numbers: Tensor, eos: int, age: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(token, log-probability under the full softmax, log-probability under what was drawn from), each (n,).

    `age` (n,): how many tokens the rows have already.
    """
    scaled = logits / sampling.heat if sampling.heat not in (0, 1) else logits  # greedy is scored at temperature 1
    total = scaled.logsumexp(-1)
    if not sampling.truncates:
        token = draw((scaled - total[:, None]).exp(), numbers)
        full = scaled.gather(1, token[:, None])[:, 0] - total
        return token, full, full
    allowed = scaled
    if sampling.min_new_tokens:
        allowed = scaled.clone()
        allowed[age < sampling.min_new_tokens, eos] = -math.inf
    if sampling.heat == 0:
        token = allowed.argmax(-1)
        behaviour = torch.zeros_like(total)
    else:
        probabilities = restrict(allowed, sampling).softmax(-1)
        token = draw(probabilities, numbers)
        behaviour = probabilities.gather(1, token[:, None])[:, 0].log()
    return token, scaled.gather(1, token[:, None])[:, 0] - total, behaviour


def _mark_stopped(ended: Tensor, ids: Tensor, rows: Tensor, places: Tensor, stop: Sequence[str], codec: Codec) -> None:
    """Mark the samples `rows` whose text now ends, with the token at their place, in a stop string; only the tail that
    can hold one is decoded."""
    tail = max(4 * len(text) for text in stop) + 4  # a character is at most four byte-level tokens
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        text = codec.decode(ids[row, max(0, place + 1 - tail) : place + 1].tolist())
        if any(s in text for s in stop):
            ended[row] = True


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string in it."""
    found = [place for place in (text.find(s) for s in stop) if place >= 0]
    return text[: min(found)] if found else text
