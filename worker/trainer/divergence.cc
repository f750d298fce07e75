#include "worker/trainer/divergence.h"

#include "absl/strings/str_format.h"

namespace qlora::trainer {
namespace {

constexpr int kSteps = 5;
constexpr char kRemedy[] =
    "; the result will be of no use: cancel the job and submit it with a lower "
    "train.learning_rate, and with train.max_grad_norm 1 if that is 0";
// Of the loss: less is chance.
constexpr double kWorse = 1.01;

}  // namespace

void DivergenceWatch::BeganAt(double loss) {
  start_loss_ = loss;
  started_ = kSteps;
}

std::string DivergenceWatch::After(int64_t step, double loss,
                                   double grad_norm) {
  if (warned_) return "";
  without_gradient_ = grad_norm == 0 ? without_gradient_ + 1 : 0;
  // Twice the loss of a model that has learned is an unlucky batch yet.
  far_above_ = started_ > 0 && loss > 2 * start_loss_ + 1 ? far_above_ + 1 : 0;
  // Nor is a loss that rises at once a start.
  if (started_ < kSteps && (started_ == 0 || loss < 1.5 * start_loss_)) {
    start_loss_ += (loss - start_loss_) / ++started_;
  }
  warned_ = without_gradient_ == kSteps || far_above_ == kSteps;
  if (!warned_) return "";
  const int64_t since = step - kSteps + 1;
  return without_gradient_ == kSteps
             ? absl::StrFormat(
                   "the gradient is 0 since step %d (loss %.4g): the model has "
                   "collapsed and learns nothing%s",
                   since, loss, kRemedy)
             : absl::StrFormat(
                   "the training diverges: the loss is far above its start "
                   "(%.4g) since step %d, now %.4g%s",
                   start_loss_, since, loss, kRemedy);
}

std::string WorseAtEnd(double first, double last) {
  if (last <= kWorse * first) return "";
  return absl::StrFormat(
      "the result is worse than what it began with: the loss over the first "
      "batch was %.4g before the first step and is %.4g at the end; submit the "
      "job with a lower train.learning_rate, and with train.max_grad_norm 1 if "
      "that is 0",
      first, last);
}

}  // namespace qlora::trainer
