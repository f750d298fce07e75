// Sees from the numbers of the steps that a training has gone wrong though they
// are finite. Used by one thread.
#pragma once

#include <cstdint>
#include <string>

namespace qlora::trainer {

class DivergenceWatch {
 public:
  // A sentence for the user with a remedy once, when for several steps the
  // gradient norm is exactly 0 or the loss is far above that of the first
  // steps; else empty. After each step.
  std::string After(int64_t step, double loss, double grad_norm);
  // The loss with which the job began, in an earlier attempt.
  void BeganAt(double loss);

 private:
  bool warned_ = false;
  // Mean loss of the steps seen first, and their number.
  double start_loss_ = 0;
  int started_ = 0;
  // Steps in a row that ended so.
  int without_gradient_ = 0;
  int far_above_ = 0;
};

// The same if the loss over the first batch is higher at the end of a job than
// before the first step.
std::string WorseAtEnd(double first, double last);

}  // namespace qlora::trainer
