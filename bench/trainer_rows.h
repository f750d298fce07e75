// QLoRA training of a random Llama of 135 M parameters (SmolLM's shape): rank
// 16 on all linears, the same 4 rows of 512 tokens in every step. Beside it the
// same run by PEFT from the same adapter, and the machine's own rate of matrix
// products. Speed is that of the fastest step after the first, of both.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "bench/options.h"
#include "bench/rows.h"

namespace qlora::bench {

absl::Status AddTrainerRows(const Options& options, std::vector<Row>* rows);

}  // namespace qlora::bench
