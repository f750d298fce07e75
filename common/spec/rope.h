// Rotary embedding's frequencies from a config.json, in either of the two forms
// that transformers has written (docs/formats/model.md). Stateless.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace qlora {

struct Rope {
  // head_dim / 2 values with the scaling (default, linear, llama3) applied,
  // rounded as transformers rounds them.
  std::vector<float> inv_freq;
  // What max_position_embeddings has to be multiplied with for the longest
  // sequence: configurations with llama3 scaling state the product already.
  double length_factor = 1;
};

// The first error goes into status: InvalidArgument or Unimplemented, naming
// the field after `prefix`.
Rope ReadRope(const nlohmann::json& config, int head_dim,
              const std::string& prefix, absl::Status& status);

}  // namespace qlora
