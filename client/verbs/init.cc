#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/verbs.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace qlora::client {
namespace {

constexpr char kTemplate[] =
    R"(# A qlorad job. `qloractl explain` lists every key, `qloractl explain KEY` tells
# about one; what is left out has its default.
apiVersion: qlora/v1
name: NAME

# A directory in Hugging Face form (config.json, safetensors, tokenizer.json)
# below a worker's --model-root, or a name that `qloractl model import` gave.
model: {base: ./base-model}

# qlora: adapters on a quantized base. lora: on the base as it is. full: all
# weights.
method: qlora
lora: {rank: 16, alpha: 32, dropout: 0.05}

data:
  # One JSON object a line: {"messages": [{"role": "user", "content": "..."},
  # {"role": "assistant", "content": "..."}]}. Other formats: prompt_completion,
  # alpaca, text, tokens. A file beside this one is uploaded by `submit`.
  train: [{path: train.jsonl, format: chat}]
  # Kept apart to measure the loss on what was not trained.
  eval_fraction: 0.05
  max_seq_len: 1024
  # Only what the assistant says is learned.
  loss_on: assistant

train:
  epochs: 3
  global_batch_size: 16
  learning_rate: 2e-4
  lr_scheduler: cosine
  warmup_ratio: 0.03

eval: {every: 50 steps}
checkpoint: {every: 100 steps}

# Ranks on one node; the base is sharded over them.
resources: {devices_per_node: 1}
)";

}  // namespace

absl::Status Init(Session& session, const std::string& file,
                  const std::string& name, bool force) {
  std::error_code error;
  if (std::filesystem::exists(file, error) && !force) {
    return WithHint(WithWhat(absl::AlreadyExistsError("it exists"),
                             absl::StrCat("will not overwrite ", file)),
                    absl::StrCat("qloractl init --force ", file));
  }
  RETURN_IF_ERROR(WriteFileAtomically(
      file, absl::StrReplaceAll(kTemplate, {{"NAME", name}})));
  *session.output.out << "wrote " << file << "\nnext: qloractl plan -f " << file
                      << "\n";
  return absl::OkStatus();
}

}  // namespace qlora::client
