#!/usr/bin/env bash
# GRPO in verl with Band: verl's own entry point, and three lines for the rule. In verl's environment:
#
#     pip install 'bandpo[verl]'
#     bandpo launch verl-data math math500 --output data/verl
#     bash examples/verl_band.sh                               # a node with 8 GPUs
#     bash examples/verl_band.sh trainer.n_gpus_per_node=2     # any key of verl
#     bash examples/verl_band.sh --cfg=job                     # prints the configuration, runs nothing
#
# `bandpo launch verl MODEL/METHOD` has the paper's settings; docs/integrations/verl.md explains both.
set -euo pipefail

settings=(
  # The rule. Clip-Higher for comparison: rule={name: clip, low: 0.2, high: 0.28}
  actor_rollout_ref.actor.policy_loss._target_=bandpo.integrations.verl.BandPolicyLossConfig
  actor_rollout_ref.actor.policy_loss.loss_mode=bandpo
  '+actor_rollout_ref.actor.policy_loss.rule={name: band, radius: 0.05, divergence: kl}'
  # verl's dual clip is 3 by default, below many of Band's upper bounds.
  actor_rollout_ref.actor.clip_ratio_c=10
  # 256 prompts in minibatches of 64: 4 updates per rollout. With one, every ratio is 1 and no rule can act.
  data.train_batch_size=256
  actor_rollout_ref.actor.ppo_mini_batch_size=64
  actor_rollout_ref.actor.use_dynamic_bsz=true
  actor_rollout_ref.actor.optim.lr=1e-6

  algorithm.adv_estimator=grpo
  critic.enable=false
  actor_rollout_ref.model.path=Qwen/Qwen2.5-3B-Instruct
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=16
  data.train_files=data/verl/math.parquet
  data.val_files=data/verl/math500.parquet
  data.max_prompt_length=1024
  data.max_response_length=2048
  reward.custom_reward_function.path=pkg://bandpo.integrations.verl_reward
  reward.custom_reward_function.name=compute_score
  trainer.project_name=bandpo
  trainer.experiment_name=verl-band
  'trainer.logger=[console, tensorboard]'
  trainer.n_gpus_per_node=8
)
exec "${PYTHON:-python}" -m verl.trainer.main_ppo "${settings[@]}" "$@"
