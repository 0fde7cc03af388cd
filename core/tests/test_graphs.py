"""Graphs of a step, with a capture that a CPU can do: work is repeated on the same tensors, as a GPU would."""

from __future__ import annotations

import torch
from rlhf_core.interfaces import Sampling
from rlhf_core.policies import decoding
from rlhf_core.policies.graphs import Graphs

from .toys import make_policy, prompts


def captured(step, inputs):
    """What CUDA does: results lie in the same memory after every replay."""
    results = step(*inputs)

    def replay() -> None:
        for place, new in zip(results, step(*inputs), strict=True):
            place.copy_(new)

    return replay, results


def test_a_shape_is_captured_at_its_second_time_and_replayed_on_what_it_is_given() -> None:
    shapes: list[int] = []

    def capture(step, inputs):
        shapes.append(len(inputs[0]))
        return captured(step, inputs)

    graphs = Graphs(lambda x: (x * 2,), capture)
    for rows in (3, 3, 3, 2, 3, 2, 2):
        given = torch.arange(float(rows)) + rows
        assert torch.equal(graphs(given)[0], given * 2)
    assert shapes == [3, 2]
    graphs.forget()
    graphs(torch.ones(3))
    assert shapes == [3, 2]
    graphs(torch.ones(3))
    assert shapes == [3, 2, 3]


def test_decoding_with_graphs_draws_the_same(monkeypatch) -> None:
    policy = make_policy("llama")
    sampling = Sampling(max_new_tokens=40)  # longer than the cache is at first
    eager = policy.generate(prompts() * 3, sampling, seed=5)
    made: list[Graphs] = []

    def graphs(step):
        made.append(Graphs(step, captured))
        return made[-1]

    llama = decoding.LlamaDecoder
    monkeypatch.setattr(decoding, "LlamaDecoder", lambda network, pad, dtype, _: llama(network, pad, dtype, graphs))
    for rows in (256, 2):
        policy.engine = decoding.Refill(decoding.RefillConfig(slots=rows), policy.context)
        again = policy.generate(prompts() * 3, sampling, seed=5)
        assert torch.equal(eager.response_ids, again.response_ids)
        torch.testing.assert_close(eager.logprobs, again.logprobs, atol=1e-5, rtol=0)
    assert len(made) == 2 and all(graph._captured for graph in made)
