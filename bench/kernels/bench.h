// What the rows of all ops share.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/status/statusor.h"
#include "bench/machine.h"
#include "bench/options.h"
#include "bench/rows.h"
#include "kernels/backend.h"

namespace qlora::bench {

// A row "kernels/cpu/NAME" of the fastest CPU backend.
struct KernelRow {
  // "rms_norm".
  std::string name;
  // Of one run: bytes that have to be read and bytes that have to be written,
  // or arithmetic. Exactly one is not 0.
  double bytes = 0;
  double flops = 0;
  // Which products the arithmetic is a share of.
  kernels::Dtype dtype = kernels::Dtype::kFloat32;
};

// Seconds of a run.
using Turn = std::function<absl::StatusOr<double>()>;

// The faster of two runs: the first finds what others left in the caches.
Turn Timed(std::function<void()> run);

class KernelBench {
 public:
  explicit KernelBench(const Options& options);

  const Options& options() const { return options_; }
  const kernels::Backend& backend() const { return backend_; }
  // The trainer's threads; no workspace.
  const kernels::Launch& launch() const { return launch_; }

  bool Wants(const std::string& name) const;
  // Times ours, the peer (null: there is none) and the machine's limits by
  // turns, so that all meet the same machine, and keeps the fastest of each;
  // the row's share is of the limit as it was then.
  absl::Status Time(const KernelRow& row, const Turn& ours, const Turn& peer);
  // The limits at their best, then the rows.
  std::vector<Row> Rows() const;

 private:
  std::vector<Limit>& LimitsOf(size_t kind);

  const Options& options_;
  const kernels::Backend& backend_;
  const kernels::Launch launch_;
  // Of memory, and of products of either type; made when first needed. The
  // first of a kind is the one that rows are a share of.
  std::vector<Limit> limits_[3];
  std::vector<Row> rows_;
};

// Internal, naming what it is, unless ours is within `share` of the largest of
// LibTorch's values; NaN is not.
absl::Status CheckNear(const std::string& name, const at::Tensor& ours,
                       const at::Tensor& theirs, double share);

// One for each family of ops.
absl::Status BenchAttentionOps(KernelBench* bench);
absl::Status BenchQuantizeOps(KernelBench* bench);
absl::Status BenchRowOps(KernelBench* bench);

}  // namespace qlora::bench
