"""The part of the table of hyperparameters about reinforcement learning."""

from __future__ import annotations

import math

from runner.contract.knob_values import Knob

ALGORITHMS = ("ppo", "grpo", "rloo")
#: Rules by which an answer earns its reward, besides the reward model.
REWARD_RULES = ("reward_model", "exact_match", "contains", "regex", "length")
RL = ("rl",)


def even_prompts(num_prompts: int, num_generations: int, num_processes: int) -> int:
    """The most prompts, up to ``num_prompts``, whose answers several processes can share evenly; 0: none can."""
    multiple = num_processes // math.gcd(num_processes, num_generations)
    return num_prompts // multiple * multiple


REINFORCEMENT_KNOBS: tuple[Knob, ...] = (
    Knob(
        "algorithm",
        "str",
        "ppo",
        "ppo learns a value of each token; grpo and rloo compare several answers to one prompt.",
        "ppo 学习每个词元的价值; grpo 与 rloo 比较同一提示的多个回答。",
        choices=ALGORITHMS,
        recipes=RL,
    ),
    Knob(
        "reward_function",
        "str",
        "reward_model",
        "What an answer earns: the reward model's score, or 1 for being the reference, for holding it, for a match of "
        "reward_pattern, or for reward_length tokens.",
        "奖励来源: 奖励模型打分, 或规则: 与参考完全一致、包含参考、匹配 reward_pattern、长度接近 reward_length。",
        choices=REWARD_RULES,
        recipes=RL,
    ),
    Knob(
        "reward_pattern",
        "str",
        "",
        "Regular expression that an answer must match somewhere, for the rule regex.",
        "规则 regex 使用的正则表达式, 回答中出现匹配即得分。",
        counts_with=("reward_function", ("regex",)),
        recipes=RL,
    ),
    Knob(
        "reward_length",
        "int",
        16,
        "Tokens that an answer should have, for the rule length.",
        "规则 length 期望的回答长度。",
        1,
        100_000,
        unit="tokens",
        counts_with=("reward_function", ("length",)),
        recipes=RL,
    ),
    Knob(
        "rollout_batch_size",
        "int",
        16,
        "Prompts that are answered before the weights change.",
        "每次更新前用于生成回答的提示数。",
        1,
        65_536,
        unit="prompts",
        recipes=RL,
    ),
    Knob(
        "num_generations",
        "int",
        4,
        "Answers to one prompt that grpo and rloo compare; ppo takes one.",
        "grpo 与 rloo 对同一提示生成的回答数; ppo 为 1。",
        2,
        1024,
        unit="answers",
        counts_with=("algorithm", ("grpo", "rloo")),
        recipes=RL,
    ),
    Knob(
        "update_epochs",
        "int",
        4,
        "Passes over the answers before new ones are made.",
        "每批回答用于更新的遍数。",
        1,
        100,
        unit="epochs",
        recipes=RL,
    ),
    Knob(
        "max_completion_length",
        "int",
        64,
        "Longest answer.",
        "回答的最大长度。",
        1,
        65_536,
        unit="tokens",
        recipes=RL,
    ),
    Knob("temperature", "float", 1.0, "How freely answers are drawn.", "采样温度。", 0.05, 10.0, recipes=RL),
    Knob(
        "kl_coef",
        "float",
        0.05,
        "What the distance to the base costs (ppo: at the start).",
        "与基座分布距离的惩罚系数 (ppo 为初始值)。",
        1e-6,
        10.0,
        recipes=RL,
    ),
    Knob(
        "kl_target",
        "float",
        0.1,
        "Distance to the base per token that ppo steers kl_coef to; 0: kl_coef stays.",
        "ppo 自适应调整 kl_coef 时每词元的目标 KL; 0 表示不调整。",
        0.0,
        100.0,
        unit="nats",
        counts_with=("algorithm", ("ppo",)),
        recipes=RL,
    ),
    Knob("cliprange", "float", 0.2, "How far one update may go.", "单次更新的裁剪范围。", 0.01, 1.0, recipes=RL),
    Knob(
        "vf_coef",
        "float",
        0.1,
        "Weight of the value's loss in ppo.",
        "ppo 价值损失的权重。",
        0.0,
        10.0,
        counts_with=("algorithm", ("ppo",)),
        recipes=RL,
    ),
    Knob(
        "lam",
        "float",
        0.95,
        "Lambda of ppo's advantages (GAE).",
        "ppo 优势估计 (GAE) 的 lambda。",
        0.0,
        1.0,
        counts_with=("algorithm", ("ppo",)),
        recipes=RL,
    ),
)
