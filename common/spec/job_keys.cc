// The table itself, and how it is searched.
#include "common/spec/job_keys.h"

#include <algorithm>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/edit_distance.h"

namespace qlora {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::max();

// The address of a member of a JobSpec, as a plain function.
#define QLORA_FIELD(member) +[](JobSpec& s) { return &s.member; }

// A ChoiceField over an enum whose values count from 0 in the words' order.
#define QLORA_CHOICE(member, ...)                                 \
  ChoiceField {                                                   \
    +[](const JobSpec& s) { return static_cast<int>(s.member); }, \
        +[](JobSpec& s, int i) {                                  \
          s.member = static_cast<decltype(s.member)>(i);          \
        },                                                        \
    {                                                             \
      __VA_ARGS__                                                 \
    }                                                             \
  }

// A string that has one legal value today.
#define QLORA_ONLY(member, word)                     \
  ChoiceField {                                      \
    +[](const JobSpec&) { return 0; },               \
        +[](JobSpec& s, int) { s.member = word; }, { \
      word                                           \
    }                                                \
  }

std::vector<JobKey> TopKeys() {
  return {
      {.path = "name",
       .field = StringField{QLORA_FIELD(name)},
       .help = "What the job is called: letters, digits, '.', '_' and '-', at "
               "most 63.",
       .also_known_as = "run_name",
       .required = true},
      {.path = "project",
       .field = StringField{QLORA_FIELD(project)},
       .help = "The project that owns the job and what it makes."},
      {.path = "labels",
       .field = MapField{QLORA_FIELD(labels)},
       .help = "Words of your own, to find jobs by."},
      {.path = "model.base",
       .field = StringField{QLORA_FIELD(model.base)},
       .help =
           "The model to start from: a directory in Hugging Face form under "
           "a worker's --model-root, absolute or relative to the job file, "
           "else a name in the model registry. 'model: NAME' is short for "
           "it.",
       .also_known_as =
           "model_name_or_path, base_model, base_model_name_or_path",
       .required = true},
      {.path = "model.init",
       .field = QLORA_CHOICE(model.random_init, "pretrained", "random"),
       .help = "random: fresh weights; only config.json and the tokenizer of "
               "the base are used. Needs method full."},
      {.path = "method",
       .field = QLORA_CHOICE(method, "qlora", "lora", "full"),
       .help = "qlora: adapters over a 4-bit base. lora: adapters over the "
               "base as it is. full: all weights are trained."},
      {.path = "quantization.type",
       .field = QLORA_ONLY(quantization.type, "nf4"),
       .help = "The 4-bit format of the frozen base.",
       .also_known_as = "bnb_4bit_quant_type, load_in_4bit"},
      {.path = "quantization.double_quant",
       .field = BoolField{QLORA_FIELD(quantization.double_quant)},
       .help = "Quantize the block scales too, which saves 0.37 bits a weight.",
       .also_known_as = "bnb_4bit_use_double_quant"},
      {.path = "quantization.block_size",
       .field = IntegerField{QLORA_FIELD(quantization.block_size), 32, 4096},
       .help = "Weights that share a scale; a power of two.",
       .unit = "weights"},
  };
}

std::vector<JobKey> LoraKeys() {
  return {
      {.path = "lora.rank",
       .field = IntegerField{QLORA_FIELD(lora.rank), 1, 4096},
       .help = "Rank of the adapter matrices.",
       .also_known_as = "r, lora_r"},
      {.path = "lora.alpha",
       .field = NumberField{QLORA_FIELD(lora.alpha), 0, 1e6, true},
       .help = "The adapter's output is scaled by alpha / rank, or by alpha / "
               "sqrt(rank) with use_rslora.",
       .also_known_as = "lora_alpha"},
      {.path = "lora.dropout",
       .field = NumberField{QLORA_FIELD(lora.dropout), 0, 1, false, true},
       .help = "Share of an adapter's inputs that is dropped in training.",
       .also_known_as = "lora_dropout"},
      {.path = "lora.target_modules",
       .field = ListField{QLORA_FIELD(lora.target_modules), {}, "all-linear"},
       .help = "Layers that get an adapter: all-linear, or names as PEFT "
               "matches them, like [q_proj, v_proj].",
       .also_known_as = "lora_target_modules, lora_target, lora_target_linear"},
      {.path = "lora.use_rslora",
       .field = BoolField{QLORA_FIELD(lora.use_rslora)},
       .help = "Scale by alpha / sqrt(rank).",
       .also_known_as = "peft_use_rslora"},
      {.path = "lora.init_adapter",
       .field = StringField{QLORA_FIELD(lora.init_adapter)},
       .help = "A PEFT adapter to go on from: a directory beside the job file, "
               "or adapter:NAME. lora.rank, alpha, target_modules and "
               "use_rslora are the adapter's where the job file does not state "
               "them, and must be the same where it does.",
       .also_known_as = "adapter_name_or_path, lora_model_dir",
       .default_note = "fresh matrices: A random, B zero"},
  };
}

std::vector<JobKey> DataKeys() {
  return {
      {.path = "data.train",
       .field = SourcesField{QLORA_FIELD(data.train)},
       .help = "A list of {path, format}. The path is a file (relative to the "
               "job file; uploaded, unless it is absolute and below a worker's "
               "--model-root) or dataset:NAME; the format is chat, "
               "prompt_completion, alpaca, text or tokens, and may be left out "
               "for a .txt file.",
       .also_known_as = "dataset, datasets, dataset_name, train_file",
       .required = true},
      {.path = "data.eval",
       .field = SourcesField{QLORA_FIELD(data.eval)},
       .help = "The evaluation set, given as data.train is.",
       .also_known_as = "eval_dataset, test_datasets, validation_file"},
      {.path = "data.eval_fraction",
       .field = NumberField{QLORA_FIELD(data.eval_fraction), 0, 0.9},
       .help =
           "Share of the training records that is set aside for evaluation.",
       .also_known_as = "val_size, val_set_size"},
      {.path = "data.max_seq_len",
       .field = IntegerField{QLORA_FIELD(data.max_seq_len), 2, 1 << 20},
       .help = "The longest row.",
       .unit = "tokens",
       .also_known_as = "max_length, max_seq_length, sequence_len, cutoff_len"},
      {.path = "data.packing",
       .field = BoolField{QLORA_FIELD(data.packing)},
       .help = "Put several documents into one row; none sees another.",
       .also_known_as = "sample_packing"},
      {.path = "data.shuffle",
       .field = BoolField{QLORA_FIELD(data.shuffle)},
       .help = "Another order in each epoch, from train.seed; false keeps the "
               "order of the files."},
      {.path = "data.loss_on",
       .field = QLORA_CHOICE(data.loss_on, "assistant", "last", "all"),
       .help = "Which tokens of a conversation are trained: those of all "
               "assistant turns (for prompt formats: the completion), of the "
               "last one, or every token.",
       .also_known_as = "assistant_only_loss, completion_only_loss, "
                        "train_on_inputs, train_on_prompt, mask_history, "
                        "roles_to_train"},
      {.path = "data.chat_template",
       .field = StringField{QLORA_FIELD(data.chat_template)},
       .help = "A Jinja template, or the path of one, which is uploaded. A "
               "base model often has none; a small one: "
               "\"{% for m in messages %}{{ m.role }}:\\n{{ m.content }}"
               "{{ eos_token }}\\n{% endfor %}{% if add_generation_prompt %}"
               "assistant:\\n{% endif %}\"",
       .also_known_as = "chat_template_path, template, chat_template_jinja",
       .default_note = "the tokenizer's own"},
      {.path = "data.on_bad_record",
       .field = QLORA_CHOICE(data.on_bad_record, "fail", "skip"),
       .help = "What a line that is no record of its format does: fail the "
               "job, or be counted and skipped."},
      {.path = "data.on_too_long",
       .field = QLORA_CHOICE(data.on_too_long, "truncate", "split", "drop"),
       .help = "What becomes of a sequence longer than max_seq_len."},
  };
}

std::vector<JobKey> TrainScheduleKeys() {
  return {
      {.path = "train.epochs",
       .field = NumberField{QLORA_FIELD(train.epochs), 0, 1e6, true},
       .help = "Passes over the training set.",
       .also_known_as = "num_train_epochs, num_epochs, n_epochs"},
      {.path = "train.max_steps",
       .field =
           IntegerField{QLORA_FIELD(train.max_steps), 0, 1'000'000'000'000},
       .help = "Stop after so many optimizer steps, whatever train.epochs "
               "says; 0: go by epochs.",
       .unit = "steps"},
      {.path = "train.global_batch_size",
       .field = IntegerField{QLORA_FIELD(train.global_batch_size), 1, 1 << 20},
       .help = "Rows in one optimizer step, over all devices together: "
               "elsewhere rows per device times accumulation steps times "
               "devices.",
       .unit = "rows",
       .also_known_as = "batch_size, gradient_accumulation_steps"},
      {.path = "train.micro_batch_size",
       .field = IntegerField{QLORA_FIELD(train.micro_batch_size), 0, 1 << 20},
       .help = "Rows in one forward pass of one device; 0: what fits. "
               "Accumulation follows from it and changes no result.",
       .unit = "rows",
       .also_known_as = "per_device_train_batch_size"},
      {.path = "train.learning_rate",
       .field = NumberField{QLORA_FIELD(train.learning_rate), 0, 100},
       .help = "The highest learning rate.",
       .also_known_as = "lr"},
      {.path = "train.lr_scheduler",
       .field =
           QLORA_CHOICE(train.lr_scheduler, "constant", "linear", "cosine"),
       .help = "How the learning rate falls after warmup, to zero at the last "
               "step.",
       .also_known_as = "lr_scheduler_type"},
      {.path = "train.warmup_ratio",
       .field = NumberField{QLORA_FIELD(train.warmup_ratio), 0, 1},
       .help = "Share of all steps in which the learning rate rises from 0."},
      {.path = "train.warmup_steps",
       .field =
           IntegerField{QLORA_FIELD(train.warmup_steps), 0, 1'000'000'000'000},
       .help = "The same as a number of steps; not together with "
               "warmup_ratio.",
       .unit = "steps"},
  };
}

std::vector<JobKey> OptimizerKeys() {
  return {
      {.path = "train.optimizer",
       .field = QLORA_ONLY(train.optimizer, "adamw"),
       .help = "AdamW with float32 state.",
       .also_known_as = "optim"},
      {.path = "train.adam_beta1",
       .field = NumberField{QLORA_FIELD(train.adam_beta1), 0, 1, false, true},
       .help = "Decay of the first moment."},
      {.path = "train.adam_beta2",
       .field = NumberField{QLORA_FIELD(train.adam_beta2), 0, 1, false, true},
       .help = "Decay of the second moment."},
      {.path = "train.adam_epsilon",
       .field = NumberField{QLORA_FIELD(train.adam_epsilon), 0, 1, true},
       .help = "Added to the root of the second moment."},
      {.path = "train.weight_decay",
       .field = NumberField{QLORA_FIELD(train.weight_decay), 0, 100},
       .help = "Decoupled weight decay."},
      {.path = "train.max_grad_norm",
       .field = NumberField{QLORA_FIELD(train.max_grad_norm), 0, kInfinity},
       .help = "Gradients are scaled down to this norm over all trainable "
               "parameters; 0: never."},
      {.path = "train.activation_memory",
       .field =
           QLORA_CHOICE(train.activation_memory, "auto", "keep", "recompute"),
       .help = "Keep a layer's activations for the backward pass, recompute "
               "them, or (auto) keep as many as fit.",
       .also_known_as = "gradient_checkpointing"},
      {.path = "train.seed",
       .field = IntegerField{QLORA_FIELD(train.seed), 0,
                             std::numeric_limits<int64_t>::max()},
       .help = "Order, dropout and fresh weights follow from it.",
       .also_known_as = "data_seed"},
      {.path = "train.compute_dtype",
       .field =
           QLORA_CHOICE(train.compute_dtype, "auto", "float32", "bfloat16"),
       .help = "Type of the matrix products; auto is bfloat16 where the "
               "device is faster in it. Adapters, optimizer, norms and loss "
               "are float32 always.",
       .also_known_as = "bnb_4bit_compute_dtype, bf16, fp16, torch_dtype"},
      {.path = "train.deterministic",
       .field = BoolField{QLORA_FIELD(train.deterministic)},
       .help = "Training repeats bit for bit on the same gang (ranks, threads, "
               "kind of processor, rows per forward) always. true: a "
               "checkpoint that was computed in another type is refused; "
               "otherwise the job goes on from it with a warning.",
       .also_known_as = "full_determinism"},
  };
}

std::vector<JobKey> RunKeys() {
  return {
      {.path = "eval.every",
       .field = PeriodField{QLORA_FIELD(eval.every), true},
       .help = "When to measure the evaluation loss: 200, \"200 steps\", \"0.5 "
               "epochs\", \"30m\" or never.",
       .also_known_as = "eval_steps, eval_strategy",
       .default_note = "never; with an evaluation set, once at the end"},
      {.path = "logging.every",
       .field = PeriodField{QLORA_FIELD(logging.every), false},
       .help = "How often metrics are written.",
       .also_known_as = "logging_steps"},
      {.path = "checkpoint.every",
       .field = PeriodField{QLORA_FIELD(checkpoint.every), true},
       .help = "How often the state is saved; a job that fails goes on from "
               "there.",
       .also_known_as = "save_steps, save_strategy",
       .default_note = "never; once at the end"},
      {.path = "checkpoint.keep",
       .field = IntegerField{QLORA_FIELD(checkpoint.keep), 1, 1000},
       .help = "So many of the newest are kept.",
       .also_known_as = "save_total_limit"},
      {.path = "resources.nodes",
       .field = IntegerField{QLORA_FIELD(resources.nodes), 1, 1024},
       .help = "Machines to train on.",
       .also_known_as = "numNodes, num_machines"},
      {.path = "resources.devices_per_node",
       .field = IntegerField{QLORA_FIELD(resources.devices_per_node), 1, 64},
       .help = "Devices on each; the frozen base is sharded over all of them.",
       .also_known_as = "nproc_per_node, numProcPerNode, num_processes"},
      {.path = "resources.device",
       .field = QLORA_CHOICE(resources.device, "any", "cpu", "cuda", "mps"),
       .help = "Kind of device."},
      {.path = "resources.min_device_memory",
       .field = BytesField{QLORA_FIELD(resources.min_device_memory)},
       .help = "Memory that a device must have, as \"40GiB\".",
       .unit = "bytes",
       .default_note = "what the memory plan says"},
      {.path = "priority",
       .field = IntegerField{QLORA_FIELD(priority), 0, 100},
       .help = "Higher goes first; among equals the older."},
      {.path = "restart.max",
       .field = IntegerField{QLORA_FIELD(restart.max), 0, 100},
       .help = "How often a failed job goes on from its last checkpoint.",
       .also_known_as = "max_restarts"},
      {.path = "deadline",
       .field = DurationField{QLORA_FIELD(deadline)},
       .help = "Longest time of running, as \"2h\" or \"90m\".",
       .also_known_as = "activeDeadlineSeconds",
       .default_note = "none"},
      {.path = "output.name",
       .field = StringField{QLORA_FIELD(output.name)},
       .help = "What the adapter or model is called.",
       .also_known_as = "output_dir",
       .default_note = "the job's name"},
      {.path = "output.formats",
       .field = ListField{QLORA_FIELD(output.formats), {"peft"}, ""},
       .help = "Forms of the finished adapter."},
  };
}

std::string_view LastPart(std::string_view path) {
  return path.substr(path.rfind('.') + 1);  // npos + 1 is 0
}

bool IsAlsoKnownAs(const JobKey& key, std::string_view name) {
  const absl::string_view names(key.also_known_as.data(),
                                key.also_known_as.size());
  for (const absl::string_view other : absl::StrSplit(names, ", ")) {
    if (std::string_view(other.data(), other.size()) == name) return true;
  }
  return false;
}

}  // namespace

std::span<const JobKey> JobKeys() {
  static const std::vector<JobKey>* const keys = [] {
    auto* all = new std::vector<JobKey>();
    for (auto part : {TopKeys(), LoraKeys(), DataKeys(), TrainScheduleKeys(),
                      OptimizerKeys(), RunKeys()}) {
      all->insert(all->end(), part.begin(), part.end());
    }
    return all;
  }();
  return *keys;
}

const JobKey* FindJobKey(std::string_view path) {
  for (const JobKey& key : JobKeys()) {
    if (key.path == path) return &key;
  }
  return nullptr;
}

bool IsJobSection(std::string_view path) {
  if (path.empty()) return true;
  const std::string prefix = std::string(path) + ".";
  return std::any_of(
      JobKeys().begin(), JobKeys().end(),
      [&](const JobKey& key) { return key.path.starts_with(prefix); });
}

std::string SuggestJobKey(std::string_view unknown_path) {
  const std::string_view name = LastPart(unknown_path);
  for (const JobKey& key : JobKeys()) {
    if (LastPart(key.path) == name || IsAlsoKnownAs(key, name)) {
      return std::string(key.path);
    }
  }
  std::string best;
  // More than a third of the letters wrong is another word.
  size_t best_distance = std::max<size_t>(1, name.size() / 3) + 1;
  const auto consider = [&](std::string_view path, size_t distance) {
    if (distance >= best_distance) return;
    best_distance = distance;
    best = path;
  };
  if (name.size() > 64) return "";
  const std::string_view section =
      unknown_path.substr(0, unknown_path.size() - name.size());
  for (const JobKey& key : JobKeys()) {
    const std::string_view key_section =
        key.path.substr(0, key.path.size() - LastPart(key.path).size());
    // The same section is nearer than any other.
    consider(key.path, EditDistance(name, LastPart(key.path)) +
                           (section == key_section ? 0 : 1));
    const std::string_view top = key.path.substr(0, key.path.find('.'));
    if (section.empty()) consider(top, EditDistance(name, top));
  }
  return best;
}

}  // namespace qlora
