"""The part of the table of hyperparameters about preferences, rewards, answers and quantized bases."""

from __future__ import annotations

from runner.contract.knob_values import Knob

#: Loss of the recipe ``preference`` -> the beta that its paper starts from.
PREFERENCE_BETAS = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}

ALIGNMENT_KNOBS: tuple[Knob, ...] = (
    Knob(
        "quantization_bits",
        "int",
        4,
        "Bits of a frozen weight of the base: 4 or 8.",
        "基座冻结权重的量化位数: 4 或 8。",
        choices=("4", "8"),
        unit="bits",
        recipes=("sft", "preference"),
        methods=("qlora",),
    ),
    Knob(
        "bnb_4bit_quant_type",
        "str",
        "nf4",
        "Kind of 4-bit numbers.",
        "4 位量化的数据类型。",
        choices=("nf4", "fp4"),
        counts_with=("quantization_bits", ("4",)),
        recipes=("sft", "preference"),
        methods=("qlora",),
    ),
    Knob(
        "max_predict_samples",
        "int",
        32,
        "Validation samples that are answered at the end, for ROUGE-L, BLEU and chrF; 0: none.",
        "训练结束时生成回答并计算 ROUGE-L、BLEU、chrF 的验证样本数; 0 表示不生成。",
        0,
        100_000,
        unit="samples",
        recipes=("sft", "seq2seq"),
    ),
    Knob(
        "generation_max_length",
        "int",
        64,
        "Longest answer to a validation sample.",
        "验证样本回答的最大长度。",
        1,
        8192,
        unit="tokens",
        recipes=("sft", "seq2seq"),
    ),
    Knob(
        "loss_type",
        "str",
        "dpo",
        "How preferences become a loss; orpo and simpo need no reference model, kto no pairs.",
        "偏好损失的类型; orpo 与 simpo 不需要参考模型, kto 不需要成对数据。",
        choices=tuple(PREFERENCE_BETAS),
        recipes=("preference",),
    ),
    Knob(
        "beta",
        "float",
        None,
        "Weight of the preference: how far the model may leave its base (unset: 0.1, with simpo 2.0).",
        "偏好权重: 模型可偏离基座的程度 (默认 0.1, simpo 为 2.0)。",
        1e-4,
        100.0,
        recipes=("preference",),
    ),
    Knob(
        "simpo_gamma",
        "float",
        0.5,
        "Margin that SimPO wants between chosen and rejected.",
        "SimPO 期望的优劣回答间隔。",
        0.0,
        10.0,
        counts_with=("loss_type", ("simpo",)),
        recipes=("preference",),
    ),
    Knob(
        "center_rewards_coefficient",
        "float",
        0.0,
        "Pulls the mean reward towards 0; 0: not at all.",
        "使奖励均值趋近 0 的系数; 0 表示不使用。",
        0.0,
        1.0,
        recipes=("reward",),
    ),
)
