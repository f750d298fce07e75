// Where a rank's time goes. Each moment belongs to one phase: what is entered
// within another interrupts it. Used by one thread.
#pragma once

#include <array>
#include <chrono>
#include <utility>

namespace qlora::trainer {

// kGather: waiting for blocks of the base; kComm: for sums over the ranks.
enum class Phase {
  kOther,
  kData,
  kGather,
  kForward,
  kBackward,
  kComm,
  kOptim,
  kEval,
  kCheckpoint
};

// The names that metrics have, but for kOther.
inline constexpr std::array<const char*, 9> kPhaseNames = {
    "",     "data",  "gather", "forward",   "backward",
    "comm", "optim", "eval",   "checkpoint"};

class PhaseClock {
 public:
  // Gives the phase that ends.
  Phase Enter(Phase phase) {
    const auto now = std::chrono::steady_clock::now();
    seconds_[static_cast<size_t>(phase_)] +=
        std::chrono::duration<double>(now - begin_).count();
    begin_ = now;
    return std::exchange(phase_, phase);
  }

  // Of each phase since the last call, the present one up to its beginning.
  std::array<double, kPhaseNames.size()> Take() {
    return std::exchange(seconds_, {});
  }

 private:
  std::array<double, kPhaseNames.size()> seconds_{};
  Phase phase_ = Phase::kOther;
  std::chrono::steady_clock::time_point begin_ =
      std::chrono::steady_clock::now();
};

// Enters a phase for a scope; without a clock nothing.
class InPhase {
 public:
  InPhase(PhaseClock* clock, Phase phase)
      : clock_(clock), before_(clock ? clock->Enter(phase) : phase) {}
  ~InPhase() {
    if (clock_ != nullptr) clock_->Enter(before_);
  }
  InPhase(const InPhase&) = delete;
  InPhase& operator=(const InPhase&) = delete;

 private:
  PhaseClock* const clock_;
  const Phase before_;
};

}  // namespace qlora::trainer
