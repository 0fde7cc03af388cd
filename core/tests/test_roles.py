"""One base, many roles: its bytes are there once, and every role has the gradients that it would have alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_core.errors import ConfigError
from rlhf_core.interfaces import Needs, Sampling
from rlhf_core.policies.base import NOBODY
from rlhf_core.policies.causal_lm import CausalLM
from rlhf_core.policies.config import Lora, Quantization
from rlhf_core.records import Sample
from rlhf_core.rewards.config import TextRewardConfig
from rlhf_core.rewards.text import TextReward
from torch import Tensor, nn

from .toys import demonstrations, make_policy, prompts

SAMPLES = [Sample(prompt, text) for prompt, text in zip(prompts(), (" hello.", " café", " no"), strict=True)]
NEEDS = Needs(values=True, bootstrap=True, entropy=True)
KINDS = {"lora": None, "qlora": Quantization()}
WIDE = {"hidden_size": 64, "intermediate_size": 64}  # 4 bits need rows of 64
CLOSE = {"lora": {"atol": 1e-12, "rtol": 1e-9}, "qlora": {"atol": 2e-5, "rtol": 1e-4}}  # 4 bits compute in float32


class House:
    """A policy with a critic, and a reward on the same base."""

    def __init__(self, *, quantization: Quantization | None = None, checkpointing: bool = False, **config: Any) -> None:
        from rlhf_core.interfaces import Context

        def resolve(kind: str, id: str) -> Any:
            return self.policy if kind == "policy" else demonstrations()

        self.context = Context("policy", "toy", dtype="float64", resolve=resolve, policy="toy")
        options: dict[str, Any] = {"lora": Lora(r=4), "critic": "adapter", "sizes": WIDE, **config}
        self.policy: CausalLM = make_policy(
            context=self.context, quantization=quantization, gradient_checkpointing=checkpointing, **options
        )
        self.policy.prepare(NEEDS)
        settings = TextRewardConfig(base="policy", lora=Lora(r=2, target_modules=["q_proj", "up_proj"]))
        self.reward = Scorer(settings, replace(self.context, kind="reward", id="taste"))

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trainable parameter, by role and name."""
        policy = {f"policy {name}": p for name, p in self.policy.network.trainable().items()}
        reward = {f"reward {n}": p for n, p in self.reward.network.named_parameters() if p.requires_grad}
        return {**policy, **reward}


class Scorer(TextReward[TextRewardConfig]):
    """A network over text that anything may train."""

    def loss(self) -> Tensor:
        texts = [self.encode(s.prompt, s.response) for s in SAMPLES]
        scores = self.scores(texts)
        return (scores * scores.new_tensor([1.0, -2.0, 0.5])).sum()


def policy_loss(policy: CausalLM, part: str = "both") -> Tensor:
    """Something of log-probabilities, entropy, values and bootstraps."""
    rollout = policy.encode(SAMPLES, temperature=0.7)
    new = policy.forward(rollout, NEEDS)
    weights = torch.linspace(-1, 1, new.logprobs.numel(), dtype=new.logprobs.dtype).view(new.logprobs.shape)
    acting = (weights * new.logprobs).sum() - 0.3 * new.entropy.sum()
    valuing = ((new.values - weights) ** 2)[rollout.mask].sum() + (new.bootstrap**3).sum()
    return {"policy": acting, "critic": valuing, "both": acting + valuing}[part]


def nudge(parameters: dict[str, nn.Parameter], seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(parameters):
            p = parameters[name]
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def bytes_of(*modules: nn.Module) -> int:
    """Bytes of every parameter and buffer in `modules`, whoever it belongs to, each storage once."""
    seen = {}
    for module in modules:
        for tensor in (*nn.Module.state_dict(module).values(), *module.buffers()):
            if isinstance(tensor, Tensor):
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(seen.values())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_role_has_the_gradients_of_a_model_of_its_own(kind: str, checkpointing: bool) -> None:
    """All losses in one graph over one base, against one model per role that knows nothing of the others."""
    house = House(quantization=KINDS[kind], checkpointing=checkpointing)
    nudge(house.trained())
    (policy_loss(house.policy) + house.reward.loss()).backward()
    together = gradients(house.trained())
    assert len(together) == len(house.trained())

    alone: dict[str, Tensor] = {}
    for role in ("policy", "critic", "reward"):
        own = House(quantization=KINDS[kind])  # a base of its own: nobody else has spoken with it
        nudge(own.trained())
        (own.reward.loss() if role == "reward" else policy_loss(own.policy, role)).backward()
        found = gradients({n: p for n, p in own.trained().items() if p.grad is not None and bool(p.grad.any())})
        assert not found.keys() & alone.keys(), "one role's loss moves another role"
        alone.update(found)
    assert alone.keys() == {name for name, g in together.items() if bool(g.any())}
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, **CLOSE[kind])
    assert {name.split()[0] for name in alone} == {"policy", "reward"}
    assert any(name.startswith("policy critic.") for name in alone)


def test_the_gradients_of_a_shared_trunk_add_up_under_checkpointing() -> None:
    """`critic: shared`: one forward pass, and both losses reach the policy's adapter; full fine-tuning likewise."""
    for lora in (Lora(r=4), None):
        found = []
        for checkpointing in (False, True):
            house_policy = make_policy(
                context=House().context, lora=lora, critic="shared", gradient_checkpointing=checkpointing
            )
            house_policy.prepare(NEEDS)
            nudge(house_policy.network.trainable())
            policy_loss(house_policy).backward()
            found.append(gradients(house_policy.network.trainable()))
        assert found[0].keys() == found[1].keys()
        for name in found[0]:
            torch.testing.assert_close(found[0][name], found[1][name], atol=1e-12, rtol=1e-9)


def kept(policy: CausalLM, needs: Needs) -> int:
    """Numbers that a forward pass keeps for the backward pass."""
    rollout = policy.encode(SAMPLES * 4)
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        policy.forward(rollout, needs)
    return count


def test_checkpointed_layers_keep_their_inputs_only() -> None:
    """What is saved for the backward pass, counted: far less than without."""
    deep = {"num_hidden_layers": 8}
    whole, checkpointed = (
        kept(make_policy(lora=Lora(r=4), gradient_checkpointing=checkpointing, sizes=deep), Needs())
        for checkpointing in (False, True)
    )
    assert checkpointed < 0.35 * whole


def test_the_graph_of_a_critic_on_an_adapter_is_made_again() -> None:
    """Values from an adapter keep no more than values from the policy's own states; those of a whole model do."""
    sizes: dict[str, int] = {}
    for critic in ("shared", "adapter", "separate"):
        policy = make_policy(lora=Lora(r=4), critic=critic, sizes={"num_hidden_layers": 8})
        policy.prepare(NEEDS)
        sizes[critic] = kept(policy, NEEDS)
    assert sizes["adapter"] < 1.05 * sizes["shared"] < 0.8 * sizes["separate"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_the_base_are_there_once(kind: str) -> None:
    house = House(quantization=KINDS[kind])
    plain = make_policy(context=House().context, critic="shared", sizes=WIDE)
    whole = bytes_of(house.policy.module, house.reward.network)
    own = sum(p.numel() * p.element_size() for p in house.trained().values())
    base = whole - own
    expected = bytes_of(plain.module)
    if kind == "lora":
        assert base == expected
    else:  # a byte holds two weights of the quantised layers; blocks of 64 have a scale, and the rest stays whole
        layers = [m for m in plain.network.model.modules() if isinstance(m, nn.Linear)][:-1]
        numbers = sum(m.weight.numel() for m in layers)
        rest = (expected / 8 - numbers) * 4  # the house's whole layers are in float32, the plain model's in float64
        assert numbers / 2 + rest < base < numbers / 2 + rest + 0.2 * numbers + 3000 * len(layers)
    assert house.reward.network.trunk.get_input_embeddings() is house.policy.network.model.get_input_embeddings()


def test_parameters_of_a_role_are_its_own() -> None:
    house = House()
    policy = {id(p) for p in house.policy.module.parameters() if p.requires_grad}
    reward = {id(p) for p in house.reward.network.parameters() if p.requires_grad}
    critic = {id(p) for p in house.policy.value_parameters}
    assert not policy & reward and critic < policy and len(policy - critic) > 0
    assert len(reward) == 2 * 2 * 2 + 2  # A and B of two layers' two targets; the head
    with house.policy.base.speaking(NOBODY):
        pass
    assert {id(p) for p in house.policy.module.parameters() if p.requires_grad} == policy


def test_roles_do_not_hear_each_other() -> None:
    """Training one leaves what the others say as it was, bit for bit."""
    house = House()
    nudge(house.trained())
    rollout = house.policy.encode(SAMPLES)

    def said() -> dict[str, Tensor]:
        with torch.no_grad():
            out = house.policy.forward(rollout, NEEDS)
            return {"policy": out.logprobs, "critic": out.values, "reward": house.reward.score(SAMPLES).values}

    before = said()
    for role, loss in (
        ("critic", lambda: policy_loss(house.policy, "critic")),
        ("reward", house.reward.loss),
        ("policy", lambda: policy_loss(house.policy, "policy")),
    ):
        parameters = list(house.trained().values())
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        after = said()
        assert {name for name in after if not torch.equal(after[name], before[name])} == {role}
        before = after


def test_the_reward_scores_the_same_whatever_the_policy_does() -> None:
    house = House()
    nudge(house.trained())
    alone = house.reward.score(SAMPLES).values
    house.policy.generate(prompts(), Sampling(max_new_tokens=4), seed=0)
    house.policy.set_reference("base")
    with house.policy.as_reference():
        torch.testing.assert_close(house.reward.score(SAMPLES).values, alone, atol=0, rtol=0)


def test_a_critic_may_begin_as_a_reward_that_shares_the_base() -> None:
    """The critic's own trunk is then the base with the reward's adapter merged, and its values are the scores."""
    house = House(critic="separate")
    nudge(house.trained())
    house.policy.start_critic(house.reward.network.whole_trunk(), house.reward.network.head)
    values = house.policy.forward(house.policy.encode(SAMPLES), NEEDS).bootstrap  # after the last token
    torch.testing.assert_close(values, house.reward.score(SAMPLES).values.to(values), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["layers", "mlp", "q_proj"])
def test_a_reward_may_be_called_as_a_part_of_the_model_is(name: str) -> None:
    """Whose an adapter is is read off the end of its path, not off a word anywhere in it."""
    house = House()
    policy = dict(house.policy.network.trainable())
    other = Scorer(TextRewardConfig(base="policy"), replace(house.context, kind="reward", id=name))
    assert {n: id(p) for n, p in house.policy.network.trainable().items()} == {n: id(p) for n, p in policy.items()}
    own = {n: p for n, p in other.network.named_parameters() if p.requires_grad}
    assert len(own) == 2 * 7 * 2 + 2  # A and B of two layers' seven linear ones; the head
    assert all(f".lora_{n.split('.lora_')[1][0]}.weight" in n for n in other.network.own() if n.startswith("trunk."))


def test_an_adapter_of_an_embedding_is_trained_with_the_others() -> None:
    """Its parameters lie in no module of their own, so their paths end with the role's name."""
    policy = make_policy(lora=Lora(r=2, target_modules=["embed_tokens", "q_proj"]))
    weights = policy.network.policy_weights()
    assert {n.rpartition(".lora_")[2] for n in weights} == {"embedding_A", "embedding_B", "A.weight", "B.weight"}
    policy.set_reference("stage-start")
    before = policy.encode(SAMPLES)
    nudge(weights)
    assert not torch.equal(policy.encode(SAMPLES).logprobs, before.logprobs)
    with policy.as_reference():
        assert torch.equal(policy.encode(SAMPLES).logprobs, before.logprobs)


def test_state_of_every_role_comes_back_in_another_house() -> None:
    house, other = House(), House()
    nudge(house.trained())
    other.policy.load_state_dict(house.policy.state_dict())
    other.reward.load_state_dict(house.reward.state_dict())
    rollout = house.policy.encode(SAMPLES)
    mine, theirs = house.policy.forward(rollout, NEEDS), other.policy.forward(rollout, NEEDS)
    assert torch.equal(mine.logprobs, theirs.logprobs) and torch.equal(mine.values, theirs.values)
    assert torch.equal(house.reward.score(SAMPLES).values, other.reward.score(SAMPLES).values)
    names = house.reward.state_dict()["weights"]
    assert all(name.startswith("head.") or ".lora_" in name for name in names), "the frozen base is where it was"


def test_two_policies_of_one_model_share_it_and_nothing_else(tmp_path: Any) -> None:
    """Asked twice for the same base, the context hands out the same one; their states have the same names."""
    make_policy().export(tmp_path)
    context = House().context
    one, two = (
        CausalLM(CausalLM.Config(model=str(tmp_path), lora=Lora(r=4)), context.named("policy", name)) for name in "ab"
    )
    assert one.base is two.base
    nudge(one.network.trainable())
    assert one.state_dict()["weights"].keys() == two.state_dict()["weights"].keys()
    rollout = two.encode(SAMPLES)
    assert not torch.equal(one.forward(rollout, Needs()).logprobs, two.forward(rollout, Needs()).logprobs)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.forward(rollout, Needs()).logprobs, two.forward(rollout, Needs()).logprobs)


def test_a_base_that_changes_is_not_shared() -> None:
    with pytest.raises(ConfigError, match=r"policy 'toy' is fully fine-tuned.*frozen base.*`policy: toy`"):
        House(lora=None, critic="shared")
    with pytest.raises(ValueError, match="`critic: adapter` shares the policy's base, which full fine-tuning changes"):
        make_policy(critic="adapter")
    house = House()
    with pytest.raises(ConfigError, match=r"`base: policy` outside a pipeline.*Context\(policy="):
        Scorer(TextRewardConfig(base="policy"), replace(house.context, policy=None))


def test_adapters_go_on_layers_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"no layer is called 'q_prj'.*q_proj.*did you mean 'q_proj'"):
        make_policy(lora=Lora(target_modules=["v_proj", "q_prj"]))


@pytest.mark.parametrize("lora", [None, Lora(r=2)], ids=["full", "lora"])
def test_frozen_layers_are_not_trained(lora: Lora | None) -> None:
    policy = make_policy(lora=lora, frozen_layers=1)
    names = [name for name, p in policy.network.trainable().items()]
    assert names and not any("layers.0." in name or "embed_tokens" in name for name in names)
    assert any("layers.1." in name for name in names)
    with pytest.raises(ConfigError, match=r"frozen_layers.*5 of the 2 layers of 'llama'.*at most 2"):
        make_policy(lora=lora, frozen_layers=5)


def test_an_adapter_to_start_from_fits_or_says_why(tmp_path: Any) -> None:
    make_policy().export(tmp_path / "model")
    context = House().context
    config = CausalLM.Config(model=str(tmp_path / "model"), lora=Lora(r=4))
    policy = CausalLM(config, context)
    nudge(policy.network.trainable())
    policy.export(tmp_path / "adapters", adapters=True)

    def again(**changes: Any) -> CausalLM:
        lora = Lora(**{"r": 4, "start": str(tmp_path / "adapters"), **changes})
        return CausalLM(config.model_copy(update={"lora": lora}), replace(context, bases={}))

    rollout = policy.encode(SAMPLES)
    started = again()
    assert torch.equal(started.forward(rollout, Needs()).logprobs, policy.forward(rollout, Needs()).logprobs)
    with pytest.raises(ConfigError, match=r"lora.start .*have another shape.*is \(4, 48\), not \(8, 48\).*same r"):
        again(r=8)
    with pytest.raises(
        ConfigError, match=r"lora.start .*adapters of layers that get none here.*same r and target_modules"
    ):
        again(target_modules=["q_proj"])
    with pytest.raises(ConfigError, match=r"cannot load adapters from .*adapter_config.json"):
        again(start=str(tmp_path / "nothing"))
