// What this machine allows, measured: the limits that rows are a share of.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/types.h"

namespace qlora::bench {

// Of one run.
double Seconds(const std::function<void()>& run);

// Something that every machine does at a speed of its own; measured again and
// again, as the speed of a rented one comes and goes, the fastest run counts.
struct Limit {
  // "machine/copy".
  std::string name;
  std::string unit;
  // Of a run, in the unit's bytes or FLOP.
  double work = 0;
  // Ways to do it, of which the fastest counts.
  std::vector<std::function<void()>> ways;
  // Units per second, of all measurements.
  double best = 0;

  // Units per second of this one.
  double Measure();
};

// Products of 2048 x 2048 matrices by the library that the trainer uses.
Limit GemmLimit(kernels::Dtype dtype, int threads);

// Copies, writes and reads of 256 MB of random bytes, by cached and by
// streaming stores. A copied byte counts twice, as it is read and written (as
// STREAM counts; the lines that a cached store reads first do not count). A
// machine that moves both ways at a time copies faster than it reads or writes:
// an op that mostly writes gets no further than "machine/write".
std::vector<Limit> MemoryLimits(int threads);

}  // namespace qlora::bench
