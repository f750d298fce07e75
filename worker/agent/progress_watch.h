// Whether a gang still moves, judged by what a rank says that it begins
// (TrainerProgress). Pure: time comes in. Used by one thread.
//
// A *round* is one micro-batch of a step or of an evaluation. What has begun
// may take
//
//   until the first round of a step has ended   first_step
//   a round                     max(step, 10 x p99 of the steps' rounds so far)
//   saving                      a round's time + its bytes at 4 MiB/s
#pragma once

#include <deque>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "qlora/v1/trainer.pb.h"

namespace qlora::agent {

class ProgressWatch {
 public:
  ProgressWatch(absl::Duration first_step, absl::Duration step)
      : first_step_(first_step), step_(step) {}

  // Time has passed; call it every second or so. At most two seconds count: who
  // calls may have been stopped itself, and the machine asleep.
  void Tick(absl::Duration elapsed);
  // A sign of life that begins nothing.
  void Word() { silence_ = absl::ZeroDuration(); }
  // now: SteadyNow().
  void Begin(const v1::TrainerProgress& progress, absl::Time now);

  // Ticks since the last word.
  absl::Duration silence() const { return silence_; }
  absl::Duration limit() const;
  // Silent for longer than the limit: what stands still and for how long.
  std::optional<std::string> Stalled() const;

 private:
  absl::Duration RoundLimit() const;

  const absl::Duration first_step_;
  const absl::Duration step_;
  absl::Duration silence_;
  v1::TrainerProgress begun_;
  absl::Time begun_at_;
  // How long the newest rounds of steps took.
  std::deque<absl::Duration> rounds_;
};

}  // namespace qlora::agent
