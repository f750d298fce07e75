// LoRA adapters in PEFT's form: adapter_config.json and
// adapter_model.safetensors (docs/formats/adapter.md).
//
// An Adapter is immutable after OpenAdapter; functions are stateless.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/formats/safetensors.h"
#include "common/spec/job_spec.h"
#include "common/spec/model_description.h"
#include "worker/trainer/model/model.h"

namespace qlora::trainer {

struct AdapterConfig {
  // As written by the adapter's maker; for information.
  std::string base_model;
  int rank = 0;
  double alpha = 0;
  double dropout = 0;
  bool use_rslora = false;
  // alpha / r, or alpha / sqrt(r) with rsLoRA.
  float scale() const;
};

AdapterConfig AdapterConfigOf(const JobSpec& spec);

struct Adapter {
  std::string directory;
  AdapterConfig config;
  std::unique_ptr<SafetensorsReader> tensors;
};

// Reads the configuration and maps the tensors. NotFound; InvalidArgument (no
// JSON, wrong types); Unimplemented for what is no plain LoRA on linear layers
// (DoRA, modules_to_save, rank_pattern, biases...), naming the key.
absl::StatusOr<Adapter> OpenAdapter(const std::string& directory);

// The options under which a Model's layout has exactly the adapter's tensors;
// dropout 0. InvalidArgument for a tensor that is of no linear layer of this
// model, or that has the wrong shape.
absl::StatusOr<LoraOptions> LoraOptionsOf(const Adapter& adapter,
                                          const ModelDescription& model);

// Completes what the job file leaves to the adapter (from_adapter), which is
// empty after. InvalidArgument naming both values where the file states another
// than the adapter has; else as LoraOptionsOf.
absl::Status AdoptAdapter(const Adapter& adapter, const ModelDescription& model,
                          JobSpec::Lora& lora);

// Fills params (layout.total) from F32, F16 or BF16 tensors. InvalidArgument
// naming a tensor that is missing, left over, has another shape, or a value
// that is not finite.
absl::Status ReadAdapter(const Adapter& adapter, const TrainableLayout& layout,
                         std::span<float> params);

// Writes both files, synced, into an existing directory; float32, metadata
// {"format": "pt"}. `modules` are those of LoraOptions.
absl::Status WriteAdapter(const std::string& directory,
                          const AdapterConfig& config,
                          const ModelDescription& model,
                          const std::vector<std::string>& modules,
                          const TrainableLayout& layout,
                          std::span<const float> params);

}  // namespace qlora::trainer
