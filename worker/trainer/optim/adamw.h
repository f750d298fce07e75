// AdamW over flat float32 buffers, with torch.optim.AdamW's formula (decoupled
// weight decay) and torch.nn.utils.clip_grad_norm_'s clipping. Results do not
// depend on the number of threads. Used by one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/types.h"

namespace qlora::trainer {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  // 0: no clipping.
  double max_grad_norm = 0;
};

// Elements [offset, offset + size) of the buffers.
struct AdamWRange {
  int64_t offset = 0;
  int64_t size = 0;
  bool decay = true;
};

// The root of the sum of squares, summed in float64 in a fixed order.
double GlobalNorm(std::span<const float> values,
                  const kernels::ParallelFor& parallel_for);

class AdamW {
 public:
  // The ranges are disjoint and cover what is to be trained; parallel_for must
  // outlive the object.
  AdamW(const AdamWOptions& options, std::vector<AdamWRange> ranges,
        int64_t total, const kernels::ParallelFor& parallel_for);

  // One step, counted from 1: clips grads by grad_norm (their GlobalNorm),
  // updates params and moments and sets grads to 0, in one pass.
  void Step(int64_t step, double learning_rate, double grad_norm,
            std::span<float> params, std::span<float> grads);

  // First and second moments; written when a checkpoint is loaded.
  std::span<float> exp_avg() { return exp_avg_; }
  std::span<float> exp_avg_sq() { return exp_avg_sq_; }

 private:
  const AdamWOptions options_;
  const std::vector<AdamWRange> ranges_;
  const kernels::ParallelFor& parallel_for_;
  std::vector<float> exp_avg_;
  std::vector<float> exp_avg_sq_;
};

}  // namespace qlora::trainer
