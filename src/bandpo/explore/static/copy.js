// A rule as Python, recipes and frameworks write it; tests/explore/test_page.py builds the rule from each.

/** A number that YAML 1.1, TOML and Python all read as one: an exponent needs a point before it. */
function numeral(x) {
  const text = String(x);
  return /^-?\d+e/.test(text) ? text.replace("e", ".0e") : text;
}

function literal(value, none) {
  if (value === null) return none;
  if (Array.isArray(value)) return `[${value.map(numeral).join(", ")}]`;
  return typeof value === "number" ? numeral(value) : JSON.stringify(value);
}

const plain = (value) => (/^[a-z][\w-]*$/.test(value) ? value : literal(value, "null"));

/** Options to write: all except a null that is the default. */
const statedOptions = (rule, defaults) =>
  Object.entries(rule).filter(([key, value]) => value !== null || (defaults[key] ?? null) !== null);

const yamlOf = (entries) => `{${entries.map(([key, value]) => `${key}: ${plain(value)}`).join(", ")}}`;

const pythonOf = (rule, defaults) => `{${statedOptions(rule, defaults).map(([key, value]) => `"${key}": ${literal(value, "None")}`).join(", ")}}`;

/** Name of the form -> (rule {name, ...options}, what the page knows of it) -> text. */
export const FORMS = {
  Python(rule, { class: kind, options }) {
    const entries = statedOptions(rule, options).filter(([key]) => key !== "name");
    const stated = entries.map(([key, value]) => `${key}=${literal(value, "None")}`).join(", ");
    return `import bandpo\n\nrule = bandpo.${kind}(${stated})\n`
      + "result = bandpo.policy_loss(logps, old_logps, advantages, mask, rule=rule)";
  },
  TRL(rule, { options }) {
    return "from bandpo.training import BandGRPOConfig, BandGRPOTrainer\n\n"
      + `args = BandGRPOConfig(output_dir="out", steps_per_generation=4, rule=${pythonOf(rule, options)})`;
  },
  "recipe (YAML)": (rule, { options }) => `rule: ${yamlOf(statedOptions(rule, options))}`,
  verl(rule, { options }) {
    const at = "actor_rollout_ref.actor.policy_loss";
    return `${at}._target_=bandpo.integrations.verl.BandPolicyLossConfig\n${at}.loss_mode=bandpo\n`
      + `'+${at}.rule=${yamlOf(statedOptions(rule, options))}'`;
  },
  slime: (rule, { options }) => `bandpo_rule: ${yamlOf(statedOptions(rule, options))}`,
  "prime-rl"(rule, { options }) {
    const entries = statedOptions(rule, options);
    const lines = entries.filter(([, value]) => value !== null).map(([key, value]) => `${key} = ${literal(value)}`);
    const lacking = entries.filter(([, value]) => value === null).map(([key]) => `# TOML has no null, so ${key} cannot be removed`);
    return `[trainer.loss]\ntype = "custom"\nimport_path = "bandpo.integrations.prime_rl.band_loss"\n\n`
      + `[trainer.loss.kwargs.rule]\n${[...lines, ...lacking].join("\n")}`;
  },
  SkyRL: (rule, { options }) => "from bandpo.integrations.skyrl import register\n"
    + `from skyrl.train.entrypoints.main_base import main\n\nregister(${pythonOf(rule, options)})\nmain()\n\n`
    + "# python THIS_FILE.py trainer.algorithm.policy_loss_type=bandpo ...",
  "ms-swift": (rule, { options }) => `from bandpo.integrations.ms_swift import install\n\ninstall(${pythonOf(rule, options)})\n\n`
    + "# swift rlhf --rlhf_type grpo --external_plugins THIS_FILE.py --num_iterations 4 ...",
  "NeMo-RL": (rule, { options }) => "from bandpo.integrations.nemo_rl import BandPGLossFn\n\n# after setup(...), for grpo_train\n"
    + `loss_fn = BandPGLossFn(master_config.loss_fn, rule=${pythonOf(rule, options)})`,
};
