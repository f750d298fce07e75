// What mode GENERATE holds, predicted before anything is loaded, and how the
// base is held for it. Pure arithmetic.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/spec/model_description.h"
#include "worker/trainer/parallel/slab.h"

namespace qlora::trainer {

struct GenerationNeeds {
  const ModelDescription* model = nullptr;
  // As the base's job holds it.
  SlabOptions slabs;
  // Of the longest text: prompt and answer.
  int64_t positions = 0;
  int64_t adapter_bytes = 0;
  // Of the decoder, with its cache of keys and values.
  int64_t workspace_bytes = 0;
  // What the process may use; 0: unlimited.
  int64_t budget = 0;
};

// A base in NF4 is held dense, with the values that NF4 keeps, since every
// token would dequantize all of it again; or packed where only that fits.
// ResourceExhausted if nothing does; the message says what needs how much.
absl::StatusOr<SlabOptions> PlanGeneration(const GenerationNeeds& needs);

}  // namespace qlora::trainer
