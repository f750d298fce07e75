#include "worker/agent/progress_watch.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace qlora::agent {
namespace {

constexpr absl::Duration kLongestTick = absl::Seconds(2);
constexpr size_t kRounds = 512;
constexpr double kBytesPerSecond = 4 << 20;

std::string Describe(const v1::TrainerProgress& begun) {
  switch (begun.phase()) {
    case v1::TrainerProgress::PHASE_STEP:
      return absl::StrCat("step ", begun.step());
    case v1::TrainerProgress::PHASE_EVALUATION:
      return absl::StrCat("the evaluation after step ", begun.step());
    case v1::TrainerProgress::PHASE_SAVING:
      return absl::StrCat("saving after step ", begun.step());
    default:
      return "what comes before the first step";
  }
}

}  // namespace

void ProgressWatch::Tick(absl::Duration elapsed) {
  silence_ += std::clamp(elapsed, absl::ZeroDuration(), kLongestTick);
}

void ProgressWatch::Begin(const v1::TrainerProgress& progress, absl::Time now) {
  if (begun_.phase() == v1::TrainerProgress::PHASE_STEP) {
    // No longer than the ticks say, for the same reason as there.
    rounds_.push_back(std::clamp(now - begun_at_, absl::ZeroDuration(),
                                 silence_ + kLongestTick));
    if (rounds_.size() > kRounds) rounds_.pop_front();
  }
  begun_ = progress;
  begun_at_ = now;
  Word();
}

absl::Duration ProgressWatch::RoundLimit() const {
  if (rounds_.empty()) return first_step_;
  std::vector<absl::Duration> sorted(rounds_.begin(), rounds_.end());
  const auto p99 =
      sorted.begin() + static_cast<long>((sorted.size() * 99 + 99) / 100 - 1);
  std::nth_element(sorted.begin(), p99, sorted.end());
  return std::max(step_, 10 * *p99);
}

absl::Duration ProgressWatch::limit() const {
  const absl::Duration limit = RoundLimit();
  if (begun_.phase() != v1::TrainerProgress::PHASE_SAVING) return limit;
  return limit +
         absl::Seconds(static_cast<double>(begun_.bytes()) / kBytesPerSecond);
}

std::optional<std::string> ProgressWatch::Stalled() const {
  const absl::Duration limit = this->limit();
  if (silence_ <= limit) return std::nullopt;
  const auto whole = [](absl::Duration d) {
    return absl::FormatDuration(absl::Trunc(d, absl::Seconds(1)));
  };
  return absl::StrCat(Describe(begun_), " has not gone on for ",
                      whole(silence_), " (limit ", whole(limit), ")");
}

}  // namespace qlora::agent
