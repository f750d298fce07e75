// What the rows of all ops share.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "bench/options.h"
#include "bench/rows.h"
#include "kernels/backend.h"

namespace qlora::bench {

// A row "kernels/cpu/NAME" of the fastest CPU backend.
struct KernelRow {
  // "rms_norm".
  std::string name;
  // Of one run: bytes moved, or arithmetic. Exactly one is not 0.
  double bytes = 0;
  double flops = 0;
  // Which products the arithmetic is a share of.
  kernels::Dtype dtype = kernels::Dtype::kFloat32;
  double seconds = 0;
  std::optional<double> peer_seconds;
};

class KernelBench {
 public:
  KernelBench(const Options& options, std::vector<Row>* rows);

  const Options& options() const { return options_; }
  const kernels::Backend& backend() const { return backend_; }
  // The trainer's threads; no workspace.
  const kernels::Launch& launch() const { return launch_; }

  bool Wants(const std::string& name) const;
  void Add(const KernelRow& row);

 private:
  const Options& options_;
  const kernels::Backend& backend_;
  const kernels::Launch launch_;
  std::vector<Row>* rows_;
  // Measured when first needed.
  std::optional<double> copy_bandwidth_;
  std::optional<double> gemm_rate_[2];
};

// One for each family of ops.
absl::Status BenchAttentionOps(KernelBench* bench);
absl::Status BenchQuantizeOps(KernelBench* bench);
absl::Status BenchRowOps(KernelBench* bench);

}  // namespace qlora::bench
